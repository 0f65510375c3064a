"""Judge finalists again: fresh seeds, the test split, the whole set of attacks."""

from sweep.audit.audit import Audit, run_audit
from sweep.audit.figures import audit_figure, curves_figure, draw_curves
from sweep.audit.finalists import Finalist, share_interval
from sweep.audit.measures import MEASURED, PERTURBED
from sweep.audit.measuring import Measured, compare_with_people, measure_model, why_uncertified
from sweep.audit.pool import AuditProgress
from sweep.audit.results import AuditResult, judged_by, read_audited
from sweep.audit.tables import ROWS, command, show_agreement, show_audit
from sweep.audit.verdicts import read_outcome
