"""A KV connector that transfers nothing: it holds the blocks of requests that ended until it is told to let go."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, SupportsHMA

__all__ = ["HoldingConnector"]


class HoldingConnector(KVConnectorBase_V1, SupportsHMA):
    """The scheduler's side of it; `held` are the requests whose blocks it reads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.held: list[str] = []

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Nothing is elsewhere."""
        return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int, *args: Any) -> None:
        """Nothing to load."""

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """Nothing to say."""
        return KVConnectorMetadata()

    def request_finished(self, request: Any, block_ids: Any) -> tuple[bool, dict[str, Any] | None]:
        """Every other request is being sent somewhere."""
        if len(request.request_id) % 2:
            return False, None
        self.held.append(request.request_id)
        return True, None

    request_finished_all_groups = request_finished

    def start_load_kv(self, *args: Any, **kwargs: Any) -> None:
        """Of the worker's side."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Of the worker's side."""

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        """Of the worker's side."""

    def wait_for_save(self) -> None:
        """Of the worker's side."""
