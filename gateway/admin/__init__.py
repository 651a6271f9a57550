"""Administration: keys, tenants and targets as operations, each written into the audit log.

Bodies are in `models`, what is done with them in `operations` and `targets`, what is shown of records in `views`; the
admin interface and the command line use the same. `http` is the face for HTTP.
"""

from gateway.admin.redact import public
from gateway.admin.registrar import Registrar

__all__ = ["Registrar", "public"]
