"""One file by HTTP: resumed where it broke off, tried again, checked, and put in place only when it is whole.

``addresses`` knows the hosts (Google Drive by gdown, the Hugging Face Hub by huggingface_hub, plain links),
``transfer`` moves the bytes, ``partial`` keeps what has arrived, ``pages`` tells a checkpoint from a web page and
``trouble`` what may pass from what will not.

gdown and huggingface_hub find the file; neither is left to fetch it. gdown stops for good where a server does not
resume, and resumes an older file's beginning with a newer file's end; huggingface_hub throws away what has arrived
when it is interrupted; neither lets two fetches share a file.
"""

from __future__ import annotations

from rnascl_cli.engine.download.addresses import Address, parse_address
from rnascl_cli.engine.download.partial import alone, check_writable
from rnascl_cli.engine.download.transfer import Downloaded, Patience, downloaded
from rnascl_cli.engine.download.trouble import DownloadError

__all__ = [
    "Address",
    "DownloadError",
    "Downloaded",
    "Patience",
    "alone",
    "check_writable",
    "downloaded",
    "parse_address",
]
