"""The web page: `GET /`, `/live`, and the files they load."""
