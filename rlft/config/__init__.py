"""The configuration of a run: one typed schema, YAML files, dotted overrides."""

from rlft.config.schema import Config as Config
