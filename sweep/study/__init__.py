"""A study: arms swept at equal effort on the same seeds, audited, compared; its verdict, pictures and files."""

from sweep.study.figure import study_figure
from sweep.study.outcomes import collect, damage, ended_at
from sweep.study.price import price_study, price_table
from sweep.study.result import RESULT, StudyResult, latest_alike
from sweep.study.run import run_study
from sweep.study.tables import PICTURE, notes, study_markdown, study_metrics, study_tables, write_study_files
from sweep.study.verdict import power_line, sentences
