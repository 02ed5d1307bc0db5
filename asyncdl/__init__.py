"""An asynchronous, event-driven datalayer between your application, its database and its models."""
