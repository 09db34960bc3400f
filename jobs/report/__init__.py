"""The page of a job: `report/index.html` in its folder, made from `events.jsonl` and the takes' manifests alone."""
