"""A sweep as a person sees it: tables, figures, page, files, screen, importance, comparison, replay.

Matplotlib is imported where a figure is drawn, so that a table does not wait for it.
"""

from sweep.report.audited import AUDIT_FOLDER, AUDIT_JSON, AUDITED, audited_finalists
from sweep.report.axes import NORMS, budgets, draw_axes, draw_legend, draw_title
from sweep.report.comparison import Comparison, compare_sweeps, heights
from sweep.report.comparison_report import (
    comparison_json,
    comparison_markdown,
    comparison_metrics,
    comparison_tables,
    comparison_verdict,
    write_comparison_files,
)
from sweep.report.export import TABLE_WRITERS
from sweep.report.files import ledger_arrow, write_front_files, write_ledger_table
from sweep.report.formats import front_arrow, front_content, front_csv, front_table
from sweep.report.front_figure import draw_front, front_picture
from sweep.report.labels import draw_labels
from sweep.report.paper import paper_table, published_trials
from sweep.report.replay import (
    ETAS,
    agreement_alarms,
    agreement_table,
    agreements_of,
    replay_content,
    replay_sweep,
    replay_table,
    step_table,
    steps_of,
    unknown_ends,
)
from sweep.report.rows import ACCURACIES, accuracies, cells, front_rows, headings, row_name, trial_label
from sweep.report.screen import LineScreen, Screen
from sweep.report.sides import read_side
from sweep.report.spots import Spot, front_spots, in_units, staircase
from sweep.report.style import (
    FAINT,
    GRID,
    INK,
    KNEE_COLOUR,
    MEMBER_RADIUS,
    MUTED,
    house_figure,
    house_style,
    save_figure,
)
from sweep.report.tables import plain_table
from sweep.report.verdicts import judge_line, requirements_text, short_verdict, verdict
from sweep.report.words import duration, percent, size
