"""The response cache: answers that are kept, and given again to calls that ask for exactly the same."""

from gateway.answers.answers import AnswerEvents, Answers, Cached
from gateway.answers.terms import Terms

__all__ = ["AnswerEvents", "Answers", "Cached", "Terms"]
