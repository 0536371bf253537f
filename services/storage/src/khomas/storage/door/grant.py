"""The grant that a request has shown, for its handler."""

from aiohttp import web

from khomas.storage.grants.grants import Grant

GRANT = web.RequestKey("grant", Grant)
