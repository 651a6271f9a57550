"""nginx twice: as the stub that answers for model servers, and as a proxy before it."""

from __future__ import annotations

import getpass
from pathlib import Path

from debian import Tools

LUA = Path(__file__).with_name("stub.lua")

MAIN = """\
daemon off;
user {user};
worker_processes 1;
pid {folder}/{name}.pid;
error_log stderr error;
{modules}
events {{ worker_connections 8192; }}
http {{
    access_log off;
    tcp_nodelay on;
    client_body_temp_path {folder}/{name}-bodies;
    proxy_temp_path {folder}/{name}-proxy;
    fastcgi_temp_path {folder}/{name}-fastcgi;
    uwsgi_temp_path {folder}/{name}-uwsgi;
    scgi_temp_path {folder}/{name}-scgi;
    client_max_body_size 64m;
    client_body_buffer_size 4m;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
{inside}
}}
"""
STUB = """\
    postpone_output 65536;
    lua_package_path "{lua}/?.lua;;";
    init_by_lua_file {script};
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ content_by_lua_block {{ answer() }} }}
    }}"""
PROXY = """\
    upstream stub {{
        server 127.0.0.1:{to};
        keepalive 1024;
        keepalive_requests 1000000000;
        keepalive_timeout 600s;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://stub;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}"""


def stub(tools: Tools, folder: Path, port: int) -> list[object]:
    """The command that serves the stub on a port."""
    modules = "".join(
        f"load_module {tools.modules}/{name}.so;\n" for name in ("ndk_http_module", "ngx_http_lua_module")
    )
    return _command(tools, folder, "stub", modules, STUB.format(lua=tools.lua, script=LUA, port=port))


def proxy(tools: Tools, folder: Path, port: int, to: int) -> list[object]:
    """The command that passes on whatever comes to a port."""
    return _command(tools, folder, "proxy", "", PROXY.format(port=port, to=to))


def _command(tools: Tools, folder: Path, name: str, modules: str, inside: str) -> list[object]:
    text = MAIN.format(user=getpass.getuser(), folder=folder, name=name, modules=modules, inside=inside)
    file = folder / f"{name}.conf"
    file.write_text(text)
    return [tools.nginx, "-p", folder, "-e", "stderr", "-c", file]
