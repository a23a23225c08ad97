"""The engine: takes requests from any thread, schedules them, and hands their results back."""
