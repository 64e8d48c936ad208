"""Neural networks as dbt models: what loads, runs and checks them."""

__version__ = "0.1.0"
