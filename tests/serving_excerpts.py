"""Excerpts of serving logs that tests read, each with where it comes from."""

# Recorded: FerranAgulloLopez/GPULLMAdapterOptimization (Apache-2.0), server_out.log of
# predictor_loading/qwen-2.5-7b-instruct/adapter_rank_8/_8_ at ed58cb7ef40f, vLLM 0.8.5 with
# counters; folders of the paths are shortened, lines between the parts left out.
VLLM_COUNTERS = """\
INFO 05-15 13:01:20 [core_client.py:439] Core engine process 0 ready.
INFO 05-15 13:01:20 [worker_manager.py:264] Total loads from disk: 1. \
Total loading time from disk: 0.0208424290176481 seconds.
INFO 05-15 13:01:20 [worker_manager.py:278] Total loads from memory: 1. \
Total loading time from memory: 0.0031232390319928527 seconds.
INFO 05-15 13:01:20 [serving_models.py:220] Loaded new LoRA adapter: name 'dummy-0', \
path '/models/lora/lora-medical_dummy_rank_8'
INFO 05-15 13:01:20 [worker_manager.py:264] Total loads from disk: 2. \
Total loading time from disk: 0.02974642696790397 seconds.
INFO 05-15 13:01:20 [worker_manager.py:278] Total loads from memory: 2. \
Total loading time from memory: 0.006186336977407336 seconds.
INFO 05-15 13:01:20 [serving_models.py:220] Loaded new LoRA adapter: name 'dummy-1', \
path '/models/lora/lora-medical_dummy_rank_8'
INFO 05-15 13:01:21 [launcher.py:36] Route: /metrics, Methods: GET
INFO:     127.0.0.1:60498 - "POST /v1/completions HTTP/1.1" 200 OK
INFO 05-15 13:01:33 [worker_manager.py:278] Total loads from memory: 51. \
Total loading time from memory: 0.15629399323370308 seconds.
"""

# Recorded: vllm-project/vllm pull request 17936 (May 2025). One load, nothing to time it by.
VLLM_ONE_LOAD = """\
INFO 05-10 10:46:14 [serving_models.py:185] Loaded new LoRA adapter: name 'sql_adapter', \
path '/home/xx/sql-lora'
INFO:     127.0.0.1:55020 - "POST /v1/load_lora_adapter HTTP/1.1" 200 OK
INFO 05-10 10:56:49 [serving_models.py:202] Removed LoRA adapter: name 'sql_adapter'
INFO:     127.0.0.1:54752 - "POST /v1/unload_lora_adapter HTTP/1.1" 200 OK
"""

# Composed from the format strings of vllm/entrypoints/openai/serving_models.py at 075e9ba82551
# and the prefix of vllm/logger.py at 43f45549a6dd; a line of peft_helper.py as it was recorded.
VLLM_START = """\
(EngineCore_DP0 pid=15) INFO 03-02 11:03:37 [peft_helper.py:55] Loading LoRA weights trained \
with rsLoRA.
(APIServer pid=5) INFO 03-02 11:03:38 [serving_models.py:168] Loaded new LoRA adapter: \
name 'risk', path 'org/risk'
(EngineCore_DP0 pid=15) INFO 03-02 11:03:39 [peft_helper.py:55] Loading LoRA weights trained \
with rsLoRA.
(APIServer pid=5) INFO 03-02 11:03:40 [serving_models.py:168] Loaded new LoRA adapter: \
name 'law', path 'org/law'
(APIServer pid=5) INFO 03-02 11:03:40 [serving_models.py:168] Loaded new LoRA adapter: \
name 'code', path 'org/code'
(APIServer pid=5) INFO:     Application startup complete.
(APIServer pid=5) INFO 03-02 11:20:00 [serving_models.py:168] Loaded new LoRA adapter: \
name 'late', path 'org/late'
(APIServer pid=5) INFO:     10.0.0.1:4000 - "POST /v1/load_lora_adapter HTTP/1.1" 200 OK
"""

# Composed from the format strings of vllm/lora/model_manager.py at bb1d76e5bfb6 ("Adding lora.
# Model id: %d, int id: %d", "Activating LoRA. int id: %d, slot index: %d") under
# VLLM_LOGGING_LEVEL=DEBUG; the numbers of source lines are invented. The stamps in front are what
# `docker logs --timestamps` adds.
VLLM_DEBUG = """\
2025-08-01T10:00:00.500000000Z (APIServer pid=5) INFO 08-01 10:00:00 [serving_models.py:168] \
Loaded new LoRA adapter: name 'one', path '/lora/one'
2025-08-01T10:00:00.620000000Z (EngineCore_0 pid=9) DEBUG 08-01 10:00:00 \
[lora/model_manager.py:811] Adding lora. Model id: 2, int id: 2
2025-08-01T10:00:00.640000000Z (EngineCore_0 pid=9) DEBUG 08-01 10:00:00 \
[lora/model_manager.py:272] Activating LoRA. int id: 2, slot index: 1
2025-08-01T10:00:00.655000000Z (APIServer pid=5) INFO 08-01 10:00:00 [serving_models.py:168] \
Loaded new LoRA adapter: name 'two', path '/lora/two'
2025-08-01T10:00:09.100000000Z (EngineCore_0 pid=9) DEBUG 08-01 10:00:09 \
[lora/model_manager.py:272] Activating LoRA. int id: 1, slot index: 0
"""

# The first two lines are composed from the format strings of load_lora_adapter in
# python/sglang/srt/model_executor/model_runner.py, LoRARef.__str__ in lora/lora_registry.py at
# 0270cffc14bf and configure_logger in utils.py. The next three a user recorded with SGLang
# 0.5.10.post1 and shortened: what stood between "completes:" and "avail mem" is filled in.
SGLANG = """\
[2025-07-01 10:00:00 TP0] LoRA adapter loading starts: LoRARef(lora_id=0c1d, lora_name=sql, \
lora_path=/lora/sql, pinned=False). avail mem=12.34 GB
[2025-07-01 10:00:02 TP0] LoRA adapter loading completes: LoRARef(lora_id=0c1d, lora_name=sql, \
lora_path=/lora/sql, pinned=False). avail mem=12.30 GB
[2026-05-09 11:13:35] LoRA adapter loading starts: lora_id=06d20fb7..., lora_name=mock_kant_r8, \
lora_path=..., pinned=False. avail mem=4.86 GB
[2026-05-09 11:13:36] LoRA adapter loading completes: lora_id=06d20fb7..., \
lora_name=mock_kant_r8, lora_path=..., pinned=False. avail mem=4.86 GB
[2026-05-09 11:13:36] INFO:  POST /load_lora_adapter HTTP/1.1  200 OK
"""

# Composed from the format strings of predibase/lorax router/src/loader.rs at 1e223be17eb9 and
# Adapter::as_string in router/src/adapter.rs at 29655aa6dbda; tracing's own prefix as the router of
# text-generation-inference, which LoRAX comes from, writes it with the same set-up.
LORAX = """\
2024-05-07T12:39:20.807178Z  INFO lorax_router: router/src/main.rs:307: Warming up model
2024-05-07T12:40:00.100000Z  INFO lorax_router::loader: router/src/loader.rs:123: \
adapter hub:org/sql downloaded
2024-05-07T12:40:01.350000Z  INFO lorax_router::loader: router/src/loader.rs:123: \
adapter hub:org/law downloaded
2024-05-07T12:40:01.450000Z  INFO lorax_router::loader: router/src/loader.rs:178: \
adapter hub:org/sql loaded
2024-05-07T12:40:01.530000Z  INFO lorax_router::loader: router/src/loader.rs:178: \
adapter hub:org/law loaded
2024-05-07T12:55:00.000000Z  INFO lorax_router::loader: router/src/loader.rs:223: \
adapter hub:org/law offloaded
2024-05-07T12:55:00.060000Z  INFO lorax_router::loader: router/src/loader.rs:178: \
adapter hub:org/sql loaded
2024-05-07T13:30:00.000000Z  INFO lorax_router::loader: router/src/loader.rs:178: \
adapter hub:org/law loaded
"""

# What the loop in docs/serving_logs.md writes.
CLIENT_CSV = """\
adapter,status,seconds
sql,200,0.412055
law,200,0.0301
sql,400,0.001
sql,200,0.0298
"""

ALL = {
    "counters": VLLM_COUNTERS,
    "start": VLLM_START,
    "debug": VLLM_DEBUG,
    "sglang": SGLANG,
    "lorax": LORAX,
    "client": CLIENT_CSV,
}
