"""The metadata store: records of components, events, jobs, cursors and intents."""
