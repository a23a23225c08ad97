"""An executor for omni that forwards to another process over HTTP: `executor_class="http"`."""
