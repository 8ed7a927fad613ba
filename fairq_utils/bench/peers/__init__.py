"""Other toolkits for post-training quantization, one module each."""

from fairq_utils.bench.peers.registry import PEERS, Logits, Peer, Task, peer, quantize, write

__all__ = ["PEERS", "Logits", "Peer", "Task", "peer", "quantize", "write"]
