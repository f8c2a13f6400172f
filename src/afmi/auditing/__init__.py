"""Audit a network: which classes does it recognise for more than one reason?"""

from __future__ import annotations

from afmi.auditing.records import Audit, ClassAudit, Group, MapLead, Outlier
from afmi.auditing.run import audit

__all__ = ["Audit", "ClassAudit", "Group", "MapLead", "Outlier", "audit"]
