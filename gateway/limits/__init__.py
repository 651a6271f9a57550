"""Admission: whether a call may come in under the limits of its key, tenant and model, and what it holds meanwhile."""

from gateway.limits.admission import Admission, AdmissionEvents, Lease
from gateway.limits.estimate import Estimator
from gateway.limits.plan import Rules

__all__ = ["Admission", "AdmissionEvents", "Estimator", "Lease", "Rules"]
