"""Forecast what a sweep will take, from a profile of a few configurations."""

from sweep.forecast.forecast import OTHER_WORK, Forecast, make_forecast
from sweep.forecast.kept import begin_forecast, describe_cost, keep_forecast
from sweep.forecast.profile import profile_plan
from sweep.forecast.quantities import HOUR, Span, in_time
from sweep.forecast.table import forecast_table, headline
