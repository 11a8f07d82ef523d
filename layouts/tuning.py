"""Thresholds and constants that were set by hand, each with the chip and the command that showed it.

All are for TPUs, and were seen by compiling for one and replaying its schedule. Where no compiler
version is named, it is libtpu 0.0.42.1 with jax 0.10.2. Options in a comment are those of
`python -m bench layers`, run in the root of the repository, for PaLM 540B on v4:4x4x4; the comment names
the column of the table to read.

Figures of sizes that are padded are microseconds per layer of PaLM 540B in bfloat16 on v4:4x4x4, with
libtpu 0.0.50.1 and jax 0.12.0.1; for the first of them, with the constant set to 1 so that nothing is
padded:

  python -c "from layouts import tuning; tuning.STEP_TILE = 1
  from tests.bench.test_any_size import CONFIG, layers_seconds
  print(layers_seconds('prefill', 64, 13) / CONFIG.layers * 1e6)"
"""

from __future__ import annotations

from collective_einsum import TPU_V4

# Sizes that are padded -----------------------------------------------------------------------------

# Positions of a cache are a multiple of this: the rows of a TPU's tile of int8, and of two tiles of
# bfloat16. Where a head's last tile is not full, the TPU compiler copies a layer's cache in each step.
#   layers_seconds('decode', 64, N):   N = 2047  2048
#                                           279   257
CACHE_TILE = 32

# New positions of a step, on each chip that shards them, are a multiple of this: the rows of a tile.
# Fewer positions are a multiple of a power of two that adds no more than an eighth; where chips shard
# positions, no more than a quarter.
#   layers_seconds('prefill', 64, N):  N =   13    16    31    32    33    36
#                                           990  1035  2016  1729  2383  1915
#   layers_seconds('prefill', 1, N):   N =  704   768
#                                           812   744
STEP_TILE = 8

# Tokens of a chip, where activations are token-sharded, are a multiple of this; fewer tokens, a power
# of two. The first row is sharded over 16 chips (7 to 16 tokens each), the second over 4 (68 and 72).
#   layers_seconds('decode', N, 2048): N =  112   128   144   256
#                                           283   283   389   361
#                                      N =  272   288
#                                           542   451
TOKENS_TILE = 8

# Tokens (sequences times positions) for which the layouts of a prompt are chosen are a multiple of
# this, the lanes of a TPU's tile; fewer tokens, a power of two. The cost model knows full tiles only:
# for 129 tokens it predicts 323 us in layouts that take longer than those for 256 tokens.
#   layers_seconds('prefill', 1, 129), with 1: 376; with 128: 326
PROMPT_TILE = 128

# Attention -----------------------------------------------------------------------------------------

# Bytes of the scores of one block of queries: they fit the on-chip memory of the smallest chip that has
# some.
SCORES_BYTES = TPU_V4.cmem_bytes

# Groups of query blocks; each sees the keys up to its own end. With g groups, (1 + 1/g) / 2 of the
# scores are computed, and the program grows with g.
CAUSAL_GROUPS = 8

# Queries of a prompt whose attention has a window are taken in blocks of the window over this, or of as
# many as this: a block gets the keys of its own positions and of a window before them. Predicted
# milliseconds of attention in a prompt of 8192 positions on v5e:4x4, by libtpu 0.0.50.1: 12 layers of
# gemma-3-27b (window 1024) with WINDOW_BLOCKS = 1, 2, 4, 8: 13.9, 11.0, 11.2, 12.1; 4 layers of
# gpt-oss-120b (window 128) with WINDOW_BLOCK = 64, 128, 256: 37.9, 34.4, 33.7.
WINDOW_BLOCKS = 4
WINDOW_BLOCK = 128

# Int8 activations --------------------------------------------------------------------------------

# Where a chip has so many rows or fewer, each chip's shard of a row has a scale of its own, and its
# products are summed by lax's collectives; else all shards have one, and rings may sum. Predicted us a
# layer of Llama 3.1 70B on v5e:4x4 (libtpu 0.0.50.1, four layers scanned, int8 weights and cache,
# context or length 2048), with one scale and with own ones, by rows of a chip: decode 128 sequences, 32
# rows ("WS 2D batch, batch z", 4x4x1), 603 and 564; decode 512, 128 rows, 1890 and 1856; a prompt, 512
# rows ("WS 2D position, heads", 4x1x4), 2698 and 2934; 8 prompts, 4096 rows, 22017 and 24343. It is
# what the replay of `layouts.lower_decode_step` or `lower_prefill` says with this set to 0 and to 10**6,
# embedding and unembedding included.
OWN_SCALE_ROWS = 256

# Memory passes over activations in 16 bits that rounding them takes: finding the largest of a row, and
# dividing by it. 1.0 for 8 prompts of 2048 tokens of the same model and slice, in "WG X" and "WG XYZ".
INT8_PASSES = 1.0

# The feedforward -----------------------------------------------------------------------------------

# The two fractions of d_ff that a feedforward is split into. The second has fewer matmuls left to
# overlap its collectives.
D_FF_FRACTIONS = (5, 4)

# A parallel block's feedforward waits for attention where its chain of collectives (the last
# reduce-scatter over x and the all-gather after the nonlinearity) takes so many times as long. PaLM
# 540B on v4, by libtpu 0.0.50.1, predicted milliseconds of a step's layers without waiting (this set to
# 99) and with it (0.1), in rows of `python -m bench paper --full`:
#   chain  chips, sequences, weights, layouts                      without  with
#    1.93    64, 128, bf16, "WS 2D batch, batch xyz"                 29.67  31.77
#    2.29    64, 256, int8, "WS 2D batch, batch xyz"                 41.57  43.43
#    2.29   256, 1024, bf16, "WS 2D batch, batch xyz"                54.17  56.45
#    2.30   128, 64, int8, "WS 2D all-reduce, batch z"               16.01  19.68
#    2.59    64, 512, bf16, "WS 2D batch, batch xyz"                 68.64  65.69
#    2.59    32, 256, int8, "WS 2D batch, batch xyz"                 69.66  67.48
#    2.80    64, 1024, int8, "WS 2D batch, batch xyz"               123.43 120.81
# and microseconds of four layers of PaLM 62B on v5e:4x4, x y z = 4 4 1, in bf16:
#    2.27   16, 128, "WS 2D batch, batch xyz"                         2035  2038
#    2.40   16, 256, "WS 2D batch, batch xyz"                         3348  2976
#    2.47   16, 512, "WS 2D batch, batch xyz"                         5872  5598
CHAIN_TO_ATTENTION = 2.35

# All-gathers are left to SparseCores, where the cost model says that it is faster, unless they bring
# tokens over more axes than this. PaLM in bf16, decoding with a context of 2048, libtpu 0.0.50.1, us a
# layer without SparseCores and with them (options `chip` and `sparse_cores` of `--compiler_options`):
#   PaLM 540B, v5p:4x4x4, WS 2D batch (tokens over y and z):  64: 175 and 171; 256: 253 and 274;
#                                                             512: 381 and 405
#   PaLM 540B, v5p:4x4x4, WS 2D all-reduce:                   64: 162 and 150; 128: 175 and 161;
#                                                             256: 246 and 261
#   PaLM 62B, v6e:4x4, WS 2D batch (tokens over y):           64: 207 and 208; 256: 354 and 326;
#                                                             512: 540 and 462
#   PaLM 62B, v6e:4x4, WS 2D all-reduce:                      64: 206 and 183; 256: 308 and 305
SPARSE_CORE_AXES = 1
# The least predicted gain, as a fraction, for which they are. PaLM 540B's steps of 64 and 128 sequences
# gain 8% and 9% in WS 2D all-reduce, where 1.0% and 0.5% are predicted; that of 256 loses 6%, where a
# gain of 3% is.
OFFLOAD_WORTHWHILE = 0.005

# The least predicted gain, as a fraction, for which the all-gather before w_out of a parallel block is
# chunked where SparseCores run it: under way before attention, chunks take from the reduce-scatters of
# the input matrices what overlaps them. PaLM 540B, tpu7x:4x4x4, prefill of 2048 tokens, WS 2D with
# attention by heads, microseconds a layer without chunks and with them, with the gain predicted:
#   1 prompt: 593 and 637 (6%); 4 prompts: 2252 and 2149 (19%)
# (`python -m bench layers --target tpu7x:4x4x4 --phase prefill --compiler_options chip`, libtpu
# 0.0.50.1).
OUTPUTS_WORTHWHILE = 0.1

# Experts -------------------------------------------------------------------------------------------

# Rows of an array that holds the tokens of an expert are a multiple of this: the rows of a TPU's tile of
# bfloat16. It has room for so many standard deviations of a router that likes all experts alike: where
# tokens are many, one of 30,000 experts has more than that (a normal distribution), so that one layer in
# 250 of 128 experts takes a second round.
ROOM_TILE = 16
ROOM_DEVIATIONS = 4.0

# Seconds of the small operations that sort the tokens of a feedforward by expert. Decoding 64 sequences
# of Qwen 3 235B-A22B on v5e:4x4, "WS 2D batch, batch yz" on 1x4x4, four layers, by libtpu 0.0.50.1: 2.89
# ms where all experts are multiplied with all tokens, 3.31 with sorted tokens, 3.77 with tokens that are
# sent; the model says 2.66, 3.06 and 3.33.
GROUPED_SECONDS = 30e-6

# Embedding and cache -------------------------------------------------------------------------------

# Bytes of the rows of the table that are looked up at a time: they fit the on-chip memory of the
# smallest chip that has some.
LOOKUP_BYTES = TPU_V4.cmem_bytes

# Bytes of a chip's logits, or of the rows that they are made of, that are held at a time where every
# position is scored. Rows in thousands make dots of full tiles; PaLM 540B on v4:4x4x4 has 1820 of them.
LOGIT_BYTES = 2**26

# For a batch of up to so many on a chip, each sequence's write to the cache is an instruction of its
# own; of more sequences, they are a loop, in which each takes longer: decoding 32 sequences of Gemma 3
# 27B on v5e:4x4, attention by heads, takes 217 us a layer without the loop, and 236 with it; of Llama
# 3.1 70B with an int8 cache, 245 and 289 (libtpu 0.0.50.1, layers unrolled).
UNROLLED_WRITES = 64

# The cost model ------------------------------------------------------------------------------------
#
# Fitted to replayed layers on v4; `python -m bench paper` prints what the model predicts with all of
# them next to what is replayed. A constant's own figure is what remains of a column of `bench layers`
# once the other terms of the model, in `cost.layer_cost` and `cost.step_cost`, are subtracted; figures
# of libtpu 0.0.50.1 are from the rows in docs/results.md.

# Fraction of the overlapped communication of activations by which a step is longer nevertheless: dots
# that overlap it are slower, and slices of their operands are copied. Steps with rings, against
# replays of their einsums alone; the command of the fit was not kept.
OVERLAP_LOSS = 0.2

# Memory passes over the scores of a prefill, in 32 bits. With libtpu 0.0.50.1, 3.1 to 6.9. Column
# "attend", e.g.:
#   --phase prefill --batch 1 --weights int8 --attention heads --schedules blocking
SCORE_PASSES = 4.0

# The same of a step of decoding, and the seconds of its small operations. Microseconds of attention less
# the reading of the cache and the fill of HBM, PaLM 540B, 62B and 8B on v4 with libtpu 0.0.50.1: 6.0, 9,
# 16.7 and 57, where a pass takes 1.78, 3.55, 7.1 and 28.4; on v5e, where a pass takes 1.9, 3.8 and 7.6,
# 13.6, 18.6 and 25.4 (Llama 3.1 70B, int8 cache). Column "attend", e.g.:
#   --phase decode --batch 128 --feedforward "WS 2D batch" --schedules auto
#   --phase decode --batch 256 --weights int8 --feedforward "WS 2D batch" --schedules auto
DECODE_SCORE_PASSES = 1.95
DECODE_ATTENTION_SECONDS = 2.5e-6

# Further memory passes over sums too large for on-chip memory that are feature-sharded over several
# axes: their matmuls write them column-major. 0.8 to 5.7 over 8192 to 32768 tokens. The
# command of the fit was not kept.
WIDE_SCATTER_PASSES = 1.5

# Memory passes over activations between matmuls: norms, activation functions, rotary embedding, and the
# sums of the residual stream. 64 to 131072 tokens. With libtpu 0.0.50.1,
# -0.15 to 1.98 over ten rows: the constant fits that version badly. Column "rest", e.g.:
#   --phase prefill --batch 1 --weights int8 --attention heads --schedules blocking
#   --phase prefill --batch 512 --feedforward "WG XYZ" --schedules blocking
ACTIVATION_PASSES = 0.45

# Seconds that a layer takes besides, however small: some 25 small operations one after another, in
# decoding. The one figure for fixed overhead, the same for all models and layouts. Microseconds of
# column "rest" less its memory passes, with libtpu 0.0.50.1: 15 for PaLM 540B (128 rows), 13 to 15 for
# PaLM 8B on v4:2x2x2 (64 rows):
#   --phase decode --batch 128 --feedforward "WS 2D batch" --schedules auto
#   --phase decode --batch 128 --feedforward "WS 2D all-reduce" --schedules auto
LAYER_SECONDS = 15e-6

# Seconds of the small operations of the norms of a layer's queries and keys, and their memory passes.
# Four layers as those of Llama 3.1 8B with an rmsnorm of each head, less the same without, us a layer,
# by libtpu 0.0.50.1: decoding 64 sequences with 2048 positions on v5e:4x4 and a mesh 1x4x4, 15.1 (WS 2D
# all-reduce, batch z), 8.1 (WS 2D batch, batch yz) and 7.1 (WS 2D, heads); on v4:2x2x4, 9.4 (the first
# of them); a prompt of 8192 positions on v5e:4x4, 107.7 (WS 2D position, heads), where a pass takes 17.
QUERY_KEY_SECONDS = 10e-6
QUERY_KEY_PASSES = 5.5

# Seconds of slicing the scales of an int8 matrix from those of all layers: 0.6 to 0.96 us on v4, for
# each of six, with libtpu 0.0.50.1. PaLM 62B on v4:2x2x2, the ops called dynamic_slice in:
#   --model palm-62b --target v4:2x2x2 --phase decode --batch 128 --weights int8
#   --feedforward "WS 2D batch" --schedules auto
SCALE_SECONDS = 0.75e-6

# Where tokens are replicated over y and z, each norm reads or writes all of them so many times, and so
# does the sum at the end of a layer. With libtpu 0.0.50.1, all three of a serial block, Llama 3.1 70B
# on v5e: 10.3 in all (128 rows) and 10.9 (64 rows); both of a parallel one, on v4: 6.5 (PaLM 8B, 1024
# rows) and 6.8 (PaLM 540B, 128 rows), by column "rest" less LAYER_SECONDS:
#   --phase decode --batch 128 --feedforward "WS 2D all-reduce" --schedules auto
REPLICATED_PASSES = 3.5
# The same where x is one device, so that a norm needs no sums of other chips between its two passes. All
# three of a serial block, by column "rest" of 512 less that of 128 rows: 7.0 (v4) and 8.0 (v5p) of Llama
# 3.1 70B, and 7.1 (v4) of Qwen 3 32B, on meshes 1x4x16.
REPLICATED_PASSES_WHOLE = 2.4

# Unrolled layers -----------------------------------------------------------------------------------

# Steps of unrolled layers run in a loop, into which each layer's weights are copied, where the copies
# take at most this part of the matmuls' time; all others are written out. With libtpu 0.0.50.1, us a
# layer, and seconds of one core that compiling takes:
#                                                    in a loop   written out        stacked
#   prefill 1 x 2048, PaLM 540B int8, v4:4x4x4     1877   39 s   1700   322 s   1767   13 s
#   prefill 8 x 2048, Llama 3.1 70B int8, v5e:4x4 57016   56 s  55504   228 s  56769   46 s
#   prefill 2 x 2048, Llama 3.1 8B, v5e:2x2       14711   38 s  14265   144 s  14675   34 s
LONGEST_COPY = 1 / 4
