"""Forecast what a sweep will take, from a profile of a few configurations."""
