"""The families that are known, one small file for those that are alike."""

from .cohere import COHERE
from .falcon import FALCON
from .gemma import GEMMA, GEMMA2
from .glm import GLM, GLM4
from .gpt import GPT_NEOX, GPTJ
from .llama import GRANITE, LLAMA, MISTRAL, MIXTRAL
from .nemotron import NEMOTRON
from .olmo import OLMO, OLMO2
from .phi import PHI, PHI3
from .qwen import QWEN2, QWEN3, QWEN3_MOE
from .stablelm import STABLELM
from .starcoder import STARCODER2

FAMILIES = (
    *(LLAMA, MISTRAL, GRANITE, QWEN2, QWEN3, GEMMA, GEMMA2, OLMO, OLMO2, PHI, PHI3, GPTJ, GPT_NEOX),
    *(FALCON, STABLELM, COHERE, STARCODER2, GLM, GLM4, NEMOTRON),
    *(MIXTRAL, QWEN3_MOE),
)
