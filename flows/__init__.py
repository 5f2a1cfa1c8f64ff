"""Orchestration: Prefect flows, settings, command line and the embedded local services."""
