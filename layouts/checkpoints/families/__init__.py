"""The families that are known, one small file for those that are alike."""

from .bloom import BLOOM
from .cohere import COHERE, COHERE2
from .falcon import FALCON
from .gemma import GEMMA, GEMMA2, GEMMA3, GEMMA3_TEXT
from .glm import GLM, GLM4
from .gpt import GPT2, GPT_BIGCODE, GPT_NEOX, GPTJ
from .gpt_oss import GPT_OSS
from .llama import GRANITE, LLAMA, MISTRAL, MIXTRAL, SMOLLM3
from .nemotron import NEMOTRON
from .olmo import OLMO, OLMO2
from .opt import OPT
from .phi import PHI, PHI3
from .qwen import QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE
from .stablelm import STABLELM
from .starcoder import STARCODER2

FAMILIES = (
    *(LLAMA, MISTRAL, GRANITE, QWEN2, QWEN3, GEMMA, GEMMA2, OLMO, OLMO2, PHI, PHI3, GPTJ, GPT_NEOX),
    *(FALCON, STABLELM, COHERE, STARCODER2, GLM, GLM4, NEMOTRON),
    *(GEMMA3_TEXT, GEMMA3, COHERE2, SMOLLM3, GPT2, GPT_BIGCODE, OPT, BLOOM),
    *(MIXTRAL, QWEN2_MOE, QWEN3_MOE, GPT_OSS),
)
