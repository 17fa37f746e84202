"""Loading, adapters, quantization, heads, and the one place that turns logits into log-probabilities."""

import logging

# peft imports bitsandbytes, which would tell every user without a GPU to install kernels that rlft's passes do not use.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
