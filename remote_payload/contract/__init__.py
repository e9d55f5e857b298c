"""What the daemon and the box say to each other: file names, shapes, exit codes.

The one name both sides import, so it knows only the standard library and holds no behaviour beyond reading and
writing these shapes. Every file carries ``contract``; a newer daemon reads an older box, never the reverse.
"""

from remote_payload.contract.codec import *
from remote_payload.contract.job import *
from remote_payload.contract.manifest import *
from remote_payload.contract.names import *
from remote_payload.contract.progress import *
