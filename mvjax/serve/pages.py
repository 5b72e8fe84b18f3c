"""The files of a page, listed when the server starts: no path is ever made of what a client asks for."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from mvjax.serve import access as access_lib

OURS = Path(__file__).parent / "page"
INDEX = "index.html"
_HEADERS = {
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",  # a page's address may hold the token
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_SAME = "worker_addr"  # parameter by which upstream's client skips its queue


def files(folder: Path) -> dict[str, Path]:
    """Returns {path of the address: file} of all files below a folder.

    Raises:
      ValueError: if it has no index.html.
    """
    root = folder.resolve()
    if not (root / INDEX).is_file():
        raise ValueError(
            f"{folder}: expected a built page with {INDEX}, found none; run `npm ci && npm run build`"
            " and give its dist"
        )
    found = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {
        f"/{path.relative_to(root).as_posix()}": path
        for path in found
        if path.resolve().is_relative_to(root)
    }


def add_routes(app: web.Application, access: access_lib.Access, *, static: Path | None) -> None:
    """Serves our page, or upstream's built client, at "/"; a token in the address becomes a cookie."""
    listed = files(OURS if static is None else static)
    root = listed[f"/{INDEX}"]

    async def index(request: web.Request) -> web.StreamResponse:
        if static is not None and _SAME not in request.query:
            raise web.HTTPFound(request.rel_url.update_query({_SAME: "same"}))
        response = web.FileResponse(root, headers=_HEADERS)
        if access.token is not None and access.has_token(request):
            response.set_cookie(
                access_lib.COOKIE,
                access.token,
                httponly=True,
                samesite="Strict",
                secure=request.secure,
            )
        return response

    async def file(request: web.Request) -> web.StreamResponse:
        path = listed.get(request.path)
        if path is None:
            raise web.HTTPNotFound
        return web.FileResponse(path, headers=_HEADERS)

    app.router.add_get("/", index)
    app.router.add_get("/{_:.+}", file)
