"""People asked on a page: which images they are shown, what they answered, how far they agree with the judge."""

from sweep.people.agreement import agreement_of, pair_agreement
from sweep.people.answers import AnswerLog
from sweep.people.server import SurveyServer
from sweep.people.survey import open_survey
