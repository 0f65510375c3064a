"""Search spaces: what is swept, as YAML files that are read, checked and drawn from."""

from search_spaces.reading import fix_knobs, load_space, read_point, space_from_dict, space_from_yaml
from search_spaces.requirement import MEASURES, Requirement, violation
from search_spaces.space import NOT_GIVEN, NOT_SWEPT, TRIAL_FIELDS, Space
from search_spaces.study import STUDY_RESULTS, Study, load_study, names_study, study_from_yaml
from search_spaces.yaml_file import Located, dump_yaml, locate, parse_yaml, read_text, read_yaml

__all__ = [
    "dump_yaml",
    "fix_knobs",
    "load_space",
    "load_study",
    "locate",
    "Located",
    "MEASURES",
    "names_study",
    "NOT_GIVEN",
    "NOT_SWEPT",
    "parse_yaml",
    "read_point",
    "read_text",
    "read_yaml",
    "Requirement",
    "Space",
    "space_from_dict",
    "space_from_yaml",
    "Study",
    "STUDY_RESULTS",
    "study_from_yaml",
    "TRIAL_FIELDS",
    "violation",
]
