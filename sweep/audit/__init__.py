"""Judge finalists again: fresh seeds, the test split, the whole set of attacks."""

from sweep.audit.audit import Audit, run_audit
from sweep.audit.figures import curves_figure
from sweep.audit.finalists import Finalist
from sweep.audit.results import AuditResult, read_audited
from sweep.audit.tables import command, show_audit
