"""Everything that decides a sweep: options, the plan and its file, paths, remote storage."""

from sweep.plan.audit_options import AUDIT_OPTIONS, JUDGE_OPTIONS, AuditOptions
from sweep.plan.extension import EXTENDING, extended, given_points, space_changes, trials_at_first
from sweep.plan.from_options import check_options, make_plan, with_resume_overrides
from sweep.plan.mlflow_address import absolute_uri, default_mlflow_uri, given_uri, is_named, masked
from sweep.plan.options import SPACE_OPTIONS, add_option, flag, option_words
from sweep.plan.paths import (
    CACHE,
    PLAN,
    check_name,
    default_name,
    list_sweeps,
    open_storage,
    storage_folder,
    trial_folder,
)
from sweep.plan.plan import OPTIONS, PLACES, RESUMABLE, SweepPlan, check_option
from sweep.plan.plan_file import plan_text, read_plan, rewrite_plan, write_plan
from sweep.plan.plugins import own_corners, plugins_of
from sweep.plan.remote_storage import UrlStore, drop_remote, folder_of, is_url, pull_remote, push_remote, url_of
from sweep.plan.study_plan import (
    STUDY_OPTIONS,
    Step,
    StudyPlan,
    begin_study,
    draft_study,
    has_study,
    make_study,
    read_study,
)
from sweep.plan.version import CODE_VERSION, code_version, installed_version
from sweep.plan.version_changes import changed_versions, check_same_numbers, describe_changes
