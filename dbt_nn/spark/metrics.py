"""What the executors count, as accumulators of Spark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Spark adds up what tasks counted when they end; a task that ran twice counts twice.
NAMES = {
    "rows": "rows that are computed",
    "errors": "results that have an error",
    "seconds": "seconds that the servers computed, added up",
    "servers": "servers that were started",
    "start_seconds": "seconds until they had the checkpoint, added up",
    "lost_servers": "servers that were lost at work",
}


class Metrics:
    """The accumulators of a run, by name."""

    def __init__(self, spark: SparkSession):
        """Make them; Spark Connect has none, and they stay empty there."""
        self.accumulators: dict[str, Any] | None = None
        if hasattr(type(spark), "_jvm") or hasattr(spark, "_jsc"):
            context = spark.sparkContext
            self.accumulators = {
                name: context.accumulator(0.0 if "seconds" in name else 0)
                for name in NAMES
            }

    def values(self) -> dict[str, float]:
        """What is counted by now."""
        return {name: a.value for name, a in (self.accumulators or {}).items()}
