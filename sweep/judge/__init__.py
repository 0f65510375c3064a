"""Any models judged on both axes, as an audit judges its finalists; with several a leaderboard."""

from sweep.judge.files import find_models
from sweep.judge.judgement import Judgement
from sweep.judge.report import judgement_metrics, judgement_note, show_judgement
from sweep.judge.run import judge_models
from sweep.judge.setting import judging_options, judging_plan
