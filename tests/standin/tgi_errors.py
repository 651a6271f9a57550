"""The errors of TGI, each with its status, its name and its words."""


class TgiError(Exception):
    """An error in TGI's own words: `{"error": text, "error_type": type}`."""

    status = 500
    error_type = ""
    counted_as = ""
    prefix = ""

    def __init__(self, text: str = "") -> None:
        super().__init__(self.prefix + text)

    def body(self) -> dict[str, str]:
        return {"error": str(self), "error_type": self.error_type}


class Invalid(TgiError):
    status, error_type, counted_as, prefix = 422, "validation", "validation", "Input validation error: "


class TemplateFailed(TgiError):
    status, error_type, counted_as, prefix = 422, "template_error", "template", "Template error: "


class ToolFailed(TgiError):
    status, error_type, prefix = 422, "tool_error", "Tool error: "


class GenerationFailed(TgiError):
    status, error_type, counted_as, prefix = 424, "generation", "generation", "Request failed during generation: "


class Overloaded(TgiError):
    status, error_type, counted_as, prefix = 429, "overloaded", "overloaded", "Model is overloaded"


class Incomplete(TgiError):
    status, error_type, counted_as, prefix = 500, "incomplete_generation", "incomplete", "Incomplete generation"


class IncompleteStream(TgiError):
    status, error_type, counted_as = 500, "incomplete_generation_stream", "incomplete"
    prefix = "Incomplete generation stream"


class Cut(Exception):
    """The connection to the client must break here."""
