"""Files and folders in `gs://`, in `s3://` or on this machine, behind one interface.

Other rooms import `storage` and call `storage.read_bytes`, `storage.join`, ...
"""

from posttrain.storage.address import check_allowed, check_storage_root, hub_id, is_remote, join, kind, local_path
from posttrain.storage.files import (
    check_writable,
    download_file,
    download_folder,
    exists,
    file_sizes,
    list_files,
    read_bytes,
    read_start,
    remove,
    upload_file,
    upload_folder,
    write_bytes,
)
from posttrain.storage.local import check_links, naming, write_text

__all__ = [
    "check_allowed",
    "check_links",
    "check_storage_root",
    "check_writable",
    "download_file",
    "download_folder",
    "exists",
    "file_sizes",
    "hub_id",
    "is_remote",
    "join",
    "kind",
    "list_files",
    "local_path",
    "naming",
    "read_bytes",
    "read_start",
    "remove",
    "upload_file",
    "upload_folder",
    "write_bytes",
    "write_text",
]
