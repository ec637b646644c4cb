"""Asks llama.cpp; run by an interpreter that has the PyPI package xllamacpp and nothing of ours.

Reads {"model": path, "out": path, "requests": [...]} from standard input; the answers go to "out",
since llama.cpp writes to standard output as it likes.
"""

import json
import sys

import xllamacpp

job = json.load(sys.stdin)
parameters = xllamacpp.CommonParams()
parameters.model.path = job["model"]
parameters.n_ctx = 512
parameters.n_parallel = 1
parameters.cpuparams.n_threads = 1
parameters.warmup = False
# Keys and values in half precision, as is usual, would be the largest difference of all.
parameters.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(parameters)
answers = [server.handle_completions(request) for request in job["requests"]]
with open(job["out"], "w") as stream:
    json.dump(answers, stream)
