"""One module per kind of stored pictures, called as `view` in index.json; see `anban.report.sheets`."""
