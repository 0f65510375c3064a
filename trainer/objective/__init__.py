"""The objective of a trial, term by term: transport, regularisers, weights."""
