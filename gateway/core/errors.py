"""Every way a call can fail, each with its HTTP status, its OpenAI type and code, and whose fault it is.

GatewayError
  Refused                    the caller's fault, or our policy; the message is for the caller
    BadRequest               400 the body cannot be routed, or asks what the target cannot do
      NeverFits              400 the call alone is larger than a whole limit
      ContextTooLong         400 no target of the route can take so long a prompt and answer
      Unsupported            400 a field this kind of backend cannot honour
      BadFraming             400 the head could be read in two ways; the connection is closed
    Unauthenticated          401 key missing, malformed, unknown, expired or revoked: one answer for all
    Forbidden                403 the key may not use this model
      EndpointNotAllowed     403 the key may not use this endpoint
      SourceNotAllowed       403 the key may not be used from this address
    NoRoute                  404 no route by that model name
      NotServed              404 no server of the model has the endpoint
      NoResponse             404 no response of that id that is known of
        NotStored            404 nor is it kept: it cannot be shown, deleted or stopped
        ResponseGone         404 the target that has the response is in no table any more
    NotFound                 404 no such path
      NoFile                 404 the tenant has no such file
      NoBatch                404 the tenant has no such batch
    MethodNotAllowed         405 the path answers to other methods
    BodyTimeout              408 the client stopped sending its body
    Conflicting              409 the record was changed since the caller read it
    BodyTooLarge             413 the body is over the limit
    HeadersTooLarge          431 the headers together are over 32 KiB
    LimitReached             429 a limit of the key, its tenant or the model
      RateLimited            a rate or the number of calls at once: wait, and come again
      OutOfBudget            a budget is spent
    StorageFull              429 the tenant may have no more files or batches
    Throttled                429 too many wrong keys came from this address; known keys still pass
    TooManyBodies            429 the key, or its tenant, sends as many large bodies at once as it may
    QueueFull                429 all targets are busy, and no more calls may wait for them
    QueueTimeout             429 all targets stayed busy for as long as a call may wait
    Rejected                 the upstream's own 4xx, in its own words where they are fit to pass on
  ClientGone                 499 the client left; nobody reads the answer, the record does
    ReaderTooSlow            the client left unread what was sent to it, and its connection was reset
  Unavailable                503 we cannot serve now
    NoTarget                 every target of the route failed or is ejected
    StoreUnavailable         Redis cannot be asked about a key we do not know
    LimitsUnavailable        Redis cannot be asked, and a limit of the call is closed then
    FilesUnavailable         the storage of files fails
    BodyMemoryFull           bodies that are being read take up all of the memory that there is for them
    AnswerMemoryFull         large answers take up all of the memory that there is for them
    ShuttingDown             the gateway stops, and the call has not ended in the time for that
  AnswerTooLarge             502 the answer, or one event of it, is larger than we take into memory
  UpstreamError              a target failed; the text stays in our log
    Unreachable              502 no connection
    Disconnected             502 the connection ended before an answer
      EngineHung             504 its engine made no progress, so we ended the connection
    BadReply                 502 the answer is not what its dialect promises
    UpstreamFailed           502 the upstream's own 5xx, or an error event in its stream
    CredentialRefused        502 the target refused *our* credential
    ModelUnknown             502 the target does not know the model that our table wrote
    UpstreamTimeout          504 no answer, or no next event, in time
      TookTooLong            504 an answer that is no stream was not whole in time; another target would take as long
    UpstreamBusy             503 the target sheds load (429 or 503)
  Internal                   500 a bug of ours
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, TypeVar

from backends.api import Call
from backends.asked import PROMPTS

Failure = TypeVar("Failure", bound=BaseException)


class GatewayError(Exception):
    """A call that got no good answer. Class attributes say how it looks on the wire and in metrics."""

    status: int = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    error_type: ClassVar[str] = "gateway_other"
    """The closed vocabulary of metrics and logs; its first word says who is to blame."""
    outcome: ClassVar[str] = "failed"
    retryable: ClassVar[bool] = False
    """Another target may do better."""
    should_retry: bool | None = None
    """What `x-should-retry` tells the SDK; None leaves it to the status."""

    def __init__(self, message: str = "", *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.retry_after = message, param, retry_after
        self.headers: Mapping[str, str] = {}


class Refused(GatewayError):
    """The caller's fault or our policy: the message is written for the caller."""

    type = "invalid_request_error"
    outcome = "refused"
    should_retry = False


class BadRequest(Refused):
    status = 400
    code = "bad_request"
    error_type = "caller_bad_request"


class NeverFits(BadRequest):
    """Waiting does not help: the call alone is larger than a whole limit."""

    code = "exceeds_limit"
    error_type = "policy_exceeds_limit"


class ContextTooLong(BadRequest):
    code = "context_length_exceeded"
    error_type = "caller_context_too_long"


class Unsupported(BadRequest):
    code = "unsupported_value"
    error_type = "caller_unsupported"


class BadFraming(BadRequest):
    """A proxy before us may have seen another request than we do: nothing more is read from its connection."""

    code = "bad_framing"
    error_type = "caller_bad_framing"


class Unauthenticated(Refused):
    """One text for every reason, so that an answer never tells which keys exist."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"
    error_type = "caller_unauthenticated"

    def __init__(self, wanted: str = "a virtual key as 'Authorization: Bearer tl_...'") -> None:
        super().__init__(f"The API key is missing or not valid. Send {wanted}.")


class Forbidden(Refused):
    status = 403
    type = "permission_error"
    code = "model_not_allowed"
    error_type = "policy_forbidden"


class EndpointNotAllowed(Forbidden):
    code = "endpoint_not_allowed"
    error_type = "policy_endpoint_forbidden"


class SourceNotAllowed(Forbidden):
    code = "source_not_allowed"
    error_type = "policy_source_forbidden"


class NoRoute(Refused):
    status = 404
    type = "not_found_error"
    code = "model_not_found"
    error_type = "caller_unknown_model"


class NotServed(NoRoute):
    """A model that can be asked, but not for this."""

    code = "endpoint_not_served"
    error_type = "caller_endpoint_not_served"


class NoResponse(NoRoute):
    """That of another tenant is as unknown as one that was never made."""

    code = "previous_response_not_found"
    error_type = "caller_unknown_response"


class NotStored(NoResponse):
    """The same, in OpenAI's words, for who asks for the response itself."""

    type = "invalid_request_error"
    code = "response_not_found"
    error_type = "caller_response_not_stored"


class ResponseGone(NoResponse):
    code = "previous_response_gone"
    error_type = "caller_response_gone"


class NotFound(Refused):
    status = 404
    type = "not_found_error"
    code = "path_not_found"
    error_type = "caller_unknown_path"


class NoFile(NotFound):
    """Not there, or another tenant's: the answer does not tell which."""

    code = "file_not_found"
    error_type = "caller_unknown_file"


class NoBatch(NotFound):
    """As `NoFile`."""

    code = "batch_not_found"
    error_type = "caller_unknown_batch"


class MethodNotAllowed(Refused):
    status = 405
    code = "method_not_allowed"
    error_type = "caller_wrong_method"


def denied_field(names: Iterable[str], whose: str) -> BadRequest:
    """A body has fields that are not its caller's to set, `whose` calls'."""
    name = min(names)
    return BadRequest(f"The field {name!r} is not taken from callers {whose}: leave it out.", param=name)


class BodyTimeout(Refused):
    status = 408
    code = "body_timeout"
    error_type = "caller_body_timeout"


class Conflicting(Refused):
    status = 409
    code = "version_conflict"
    error_type = "caller_version_conflict"


class BodyTooLarge(Refused):
    status = 413
    code = "body_too_large"
    error_type = "caller_body_too_large"


class HeadersTooLarge(Refused):
    status = 431
    code = "headers_too_large"
    error_type = "caller_headers_too_large"


class LimitReached(Refused):
    """A limit said no; `scope` and `dimension` name it."""

    status = 429
    type = "rate_limit_error"
    outcome = "shed"
    dimension = ""
    scope = "key"


class RateLimited(LimitReached):
    code = "rate_limit_exceeded"
    error_type = "policy_rate_limited"
    should_retry = True


class OutOfBudget(LimitReached):
    """Spent until the period ends, unless the rest is only `reserved` by calls under way."""

    code = "insufficient_quota"
    error_type = "policy_out_of_budget"

    def __init__(self, message: str, *, retry_after: float, reserved: bool) -> None:
        super().__init__(message, retry_after=retry_after)
        self.should_retry = reserved


class StorageFull(Refused):
    """Waiting does not help: something must be deleted, or end."""

    status = 429
    type = "rate_limit_error"
    code = "storage_limit_reached"
    error_type = "policy_storage_full"


class Throttled(Refused):
    """Says nothing about the key that was sent: it was not looked at."""

    status = 429
    type = "rate_limit_error"
    code = "too_many_failures"
    error_type = "policy_auth_throttled"
    should_retry = True


class TooManyBodies(Refused):
    """Before a body is read: those of its key, or tenant, that are being read take up their part of the memory."""

    status = 429
    type = "rate_limit_error"
    code = "too_many_bodies"
    error_type = "policy_too_many_bodies"
    outcome = "shed"
    should_retry = True

    def __init__(self, whose: str, bytes_: int) -> None:
        super().__init__(
            f"The {whose} may send bodies of {bytes_} bytes together at once, and is doing so; wait for some of them.",
            retry_after=1,
        )


class QueueFull(Refused):
    """Refused at once, or pushed out of the queue by a call that goes first."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"
    error_type = "policy_queue_full"
    outcome = "shed"
    should_retry = True


class QueueTimeout(Refused):
    """Waited in vain, or refused at once because waiting is known to be in vain."""

    status = 429
    type = "rate_limit_error"
    code = "queue_timeout"
    error_type = "policy_queue_timeout"
    outcome = "shed"
    should_retry = True


class Rejected(Refused):
    """The upstream says the call is wrong. `body` is its own JSON where that is fit for the client."""

    error_type = "caller_rejected_upstream"

    def __init__(self, status: int, message: str, *, param: str | None = None, body: bytes | None = None) -> None:
        super().__init__(message, param=param)
        self.status, self.body = status, body


class ClientGone(GatewayError):
    status = 499
    code = "client_gone"
    error_type = "caller_gone"
    outcome = "gone"


class ReaderTooSlow(ClientGone):
    """As good as gone: it leaves unread what was sent to it. Never the target's failure."""

    type = "invalid_request_error"
    code = "reader_too_slow"
    error_type = "caller_too_slow"


class Unavailable(GatewayError):
    """We cannot serve this now; another gateway or a later try may."""

    status = 503


class NoTarget(Unavailable):
    code = "no_target"
    error_type = "gateway_no_target"


class StoreUnavailable(Unavailable):
    code = "store_unavailable"
    error_type = "gateway_store_unavailable"


class LimitsUnavailable(Unavailable):
    """The store is down, and a limit that must not be passed unchecked says so."""

    code = "limits_unavailable"
    error_type = "gateway_limits_unavailable"


class FilesUnavailable(Unavailable):
    """The folder or bucket that files are stored in cannot be used."""

    code = "files_unavailable"
    error_type = "gateway_files_unavailable"
    should_retry = True

    def __init__(self, why: str) -> None:
        super().__init__("Files cannot be stored or read at the moment; try again.", retry_after=5)
        self.why = why
        """For our log."""


class BodyMemoryFull(Unavailable):
    """Before a body is read: those that are being read take up all the memory that a worker has for them."""

    code = "body_memory_full"
    error_type = "gateway_body_memory_full"
    should_retry = True

    def __init__(self, bound: int) -> None:
        super().__init__(
            f"Bodies that are being read take up all of the memory that the gateway has for them, {bound} bytes "
            "(bodies.in_flight).",
            retry_after=1,
        )


class AnswerMemoryFull(Unavailable):
    """As `AnswerTooLarge`, but for all answers that a worker collects: nothing is wrong with this one or its target."""

    code = "answer_memory_full"
    error_type = "gateway_answer_memory_full"
    should_retry = True

    def __init__(self, bound: int) -> None:
        super().__init__(
            f"Large answers take up all of the memory that the gateway has for them, {bound} bytes (bodies.answers).",
            retry_after=1,
        )


class ShuttingDown(Unavailable):
    """The gateway stops; nothing is wrong with the call or with its target."""

    code = "gateway_shutting_down"
    error_type = "gateway_shutting_down"
    should_retry = True

    def __init__(self) -> None:
        super().__init__("The gateway is shutting down, and ended this call before its answer was complete.")


class AnswerTooLarge(GatewayError):
    """Our bound, not the target's failure: another target would answer the same."""

    status = 502
    code = "answer_too_large"
    error_type = "policy_answer_too_large"
    should_retry = False


class UpstreamError(GatewayError):
    """A target failed. The message tells the operator; clients get the class's own words."""

    status = 502
    retryable = True
    public: ClassVar[str] = "The model server failed."


class Unreachable(UpstreamError):
    code = "upstream_unreachable"
    error_type = "upstream_unreachable"
    public = "The model server could not be reached."


class Disconnected(UpstreamError):
    code = "upstream_disconnected"
    error_type = "upstream_disconnected"
    public = "The model server closed the connection before its answer was complete."


class EngineHung(Disconnected):
    """Its server answers, but nothing works on the call any more."""

    status = 504
    code = "upstream_hung"
    error_type = "upstream_hung"
    public = "The model server stopped working on the answer."


class BadReply(UpstreamError):
    code = "upstream_bad_reply"
    error_type = "upstream_bad_reply"
    public = "The model server's answer was not understood."


class UpstreamFailed(UpstreamError):
    code = "upstream_failed"
    error_type = "upstream_failed"
    public = "The model server failed to answer."


class CredentialRefused(UpstreamError):
    code = "upstream_credential"
    error_type = "upstream_credential"
    public = "The gateway's credential was refused by the model server; tell the operator."


class ModelUnknown(UpstreamError):
    code = "upstream_model"
    error_type = "upstream_model"
    public = "The model server does not know the model that the gateway asked it for; tell the operator."


class UpstreamTimeout(UpstreamError):
    status = 504
    code = "upstream_timeout"
    error_type = "upstream_timeout"
    public = "The model server did not answer in time."


class TookTooLong(UpstreamTimeout):
    """Nothing tells it from an answer that is merely long: asked for again, it would be made a second time."""

    code = "answer_timeout"
    error_type = "upstream_answer_timeout"
    public = "The model server did not complete its answer in time; ask for a shorter one, or for a stream."
    retryable = False
    should_retry = False


class UpstreamBusy(UpstreamError):
    """It sheds load; `broken` if it may as well be dead: proxies answer 503, without a time, for what is not there."""

    status = 503
    code = "upstream_busy"
    error_type = "upstream_busy"
    public = "The model server is busy."
    broken = False


class Internal(GatewayError):
    """A bug of ours: whatever no other class describes."""

    status = 500
    code = "internal_error"
    error_type = "gateway_other"


def ended_by(error: BaseException) -> GatewayError:
    """Why a call was cancelled: what `task.cancel` was given, or else its client has left."""
    return next((reason for reason in error.args if isinstance(reason, GatewayError)), None) or ClientGone()


def without_frames(error: Failure) -> Failure:
    """The error, with those behind it, but without the frames that they have come through.

    These hold the call, its body included, and what the call holds has kept the error: a circle, which is in memory
    until the garbage collector comes by. To be used where nobody asks any more where the error came from.
    """
    error.__traceback__ = None
    for behind in (error.__cause__, error.__context__):
        if behind is not None and behind.__traceback__ is not None:
            without_frames(behind)
    return error


def too_many_prompts(call: Call, limit: int) -> BadRequest:
    """What a call is told that has more prompts than `limit`."""
    name = PROMPTS[call.endpoint]
    return BadRequest(
        f"{name!r} has {call.asked.prompts} entries, more than the limit of {limit} (bodies.prompts).", param=name
    )
