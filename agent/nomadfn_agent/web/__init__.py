"""Web functions in a container: HTTP requests and websockets as ASGI's events, over the runner's link."""
