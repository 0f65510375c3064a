"""Search spaces: what is swept, as YAML files that are read, checked and drawn from."""

from search_spaces.reading import load_space, read_point, space_from_yaml
from search_spaces.requirement import MEASURES, Requirement, violation
from search_spaces.space import NOT_GIVEN, NOT_SWEPT, TRIAL_FIELDS, Space
from search_spaces.yaml_file import Located, dump_yaml, locate, parse_yaml, read_text, read_yaml

__all__ = [
    "dump_yaml",
    "load_space",
    "locate",
    "Located",
    "MEASURES",
    "NOT_GIVEN",
    "NOT_SWEPT",
    "parse_yaml",
    "read_point",
    "read_text",
    "read_yaml",
    "Requirement",
    "Space",
    "space_from_yaml",
    "TRIAL_FIELDS",
    "violation",
]
