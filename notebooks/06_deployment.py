# %% [markdown]
# # Deployment
#
# **Question.** Once a quantized model is a file that an engine runs on real integers: how fast and
# how large is it, and does it still give the predictions that the chapters before have measured?
#
# So far integers were simulated, or multiplied layer by layer. What a practitioner deploys is a
# file. Ours come from one graph with standard operators, *quantize* and *dequantize* around every
# layer, in which three engines find their integer kernels: ONNX Runtime, OpenVINO, and PyTorch's
# Inductor.

# %% tags=["parameters", "remove-cell"]
params_file = "../params/smoke.yaml"
overrides = {}

# %% tags=["remove-cell"]
from fairq_utils.report import deployment
from fairq_utils.report.chapter import open_chapter
from fairq_utils.study import recorded

open_chapter(params_file, overrides)
latency = recorded.read_rows("latency")
deployed = recorded.read_rows("deployment")
deployment.glue_deployment(latency, deployed)

# %% [markdown]
# ## Do the files predict as the simulation does?
#
# Engines fuse: they add in 32-bit integers, and round once where the simulation rounds twice. A
# value that falls between two integers may go the other way, and now and then a prediction with it.
# The test images of the default study, predicted by every file:

# %% tags=["nbval-check-output"]
deployment.disagreement_table(deployed[deployed.bits == "W8A8"])

# %% [markdown]
# At `W8A8` at most {glue:text}`differ_most:.2f` % of the predictions differ
# ({glue:text}`differ_most_case:s`), and at most {glue:text}`differ_worst:.2f` % of any group's
# ({glue:text}`differ_worst_case:s`). Kernels are counted after the engine's own optimizations:
# *float* are the layers for which it found no integer kernel. For EfficientNet that is decided by
# its SiLU, which stands between a convolution and the next rounding. OpenVINO and Inductor fuse it;
# ONNX Runtime does not, and would compute these convolutions in float. Its files therefore have
# grids of their own for both factors and the result of SiLU, and for the gates of
# squeeze-and-excitation. These are roundings that the other files do without, each with its chance
# to fall on the other side.
#
# ## Below eight bits
#
# No processor here multiplies four-bit integers. A grid of 16 values can run on byte kernels, but
# only if values above 15 are stopped: kernels that write bytes saturate at 255. Our files therefore
# carry a clamp of their own behind every such rounding. With it:

# %% tags=["nbval-check-output"]
deployment.disagreement_table(deployed[deployed.bits != "W8A8"])

# %% [markdown]
# The largest share is {glue:text}`low_differ_most:.2f` % ({glue:text}`low_differ_most_case:s`).
# ONNX Runtime is missing where inputs have fewer than eight bits: it rounds the bias of a
# convolution to a multiple of the product of two steps, $s_x s_w$, which the simulation does not,
# and on a grid of sixteen values a rounding that falls on the other side weighs enough to change
# predictions. `fairq export` refuses to write such a file. Four bits buy size here, not speed: the
# kernels are those of eight bits, and the clamps come on top.
#
# ## Size
#
# MiB of all files that an engine loads, and how many times smaller than the FP32 parameters.
# Four-bit weights are packed two to a byte where the format has such integers; Inductor's file
# holds machine code as well as weights. *Integers and scales* is what the simulation counts,
# *ideal* the ratio of the bits.

# %% tags=["nbval-check-output"]
deployment.size_table(deployed)

# %% [markdown]
# ## Time
#
# Milliseconds per image at {glue:text}`pixels:.0f` pixels, {glue:text}`threads:.0f` threads of an
# {glue:text}`processor:s` ({glue:text}`flags:s`). Points are medians, bars reach from quartile to
# quartile; every median is of at least {glue:text}`calls_least:.0f` calls after a warm-up. One
# image at a time:

# %% mystnb={"image": {"alt": "Points of milliseconds per image by engine, one image at a time"}}
deployment.latency_figure(latency, batch=1)

# %% [markdown]
# And 32 at a time:

# %% mystnb={"image": {"alt": "Points of milliseconds per image by engine, for images in batches"}}
deployment.latency_figure(latency, batch=32)

# %% [markdown]
# What the fastest of our INT8 files gains depends on what it is compared with: over PyTorch's eager
# FP32, which nobody would deploy, or over FP32 in the same engine. The published study prints the
# last column, for one image on a GPU; the ratio of the bits is four.

# %% tags=["nbval-check-output"]
deployment.speedup_table(latency)

# %% [markdown]
# Over the same engine's FP32 the gain lies between {glue:text}`over_same_least:.1f` and
# {glue:text}`over_same_most:.1f` times, over eager FP32 between {glue:text}`over_eager_least:.1f`
# and {glue:text}`over_eager_most:.1f` times. How fast a quantized network is says as much about the
# engine as about the bits.
#
# ### Beside the toolkits' own files
#
# The same networks, quantized by the toolkit that belongs to each engine (ONNX Runtime's
# `quantize_static`, NNCF, torchao's PT2E). How many times as fast ours is; below one the toolkit's
# is faster:

# %% tags=["nbval-check-output"]
deployment.toolkit_table(latency)

# %% [markdown]
# Ours is slower by more than {glue:text}`behind_margin:.0f` % in {glue:text}`behind:.0f` of
# {glue:text}`compared:.0f` cases: {glue:text}`behind_cases:s`.
#
# ### Energy
#
# {glue:text}`energy:s`
#
# ## What to deploy where
#
# For every architecture and batch size the fastest of our files, and what it keeps. Accuracy is
# that of the file itself on the rendered test images, at {glue:text}`study_size:.0f` pixels.

# %% tags=["nbval-check-output"]
deployment.guideline_table(latency, deployed)

# %% [markdown]
# `fairq export` writes such a file with a model card, and `fairq predict` runs it, without PyTorch
# unless that is the engine.
#
# ## Summary
#
# - The files predict as the simulation does: at `W8A8` at most {glue:text}`differ_most:.2f` % of
#   the predictions differ, so that what the other chapters say of simulated eight-bit models holds
#   for what is deployed.
# - The fastest INT8 file is {glue:text}`over_eager_least:.1f` to {glue:text}`over_eager_most:.1f`
#   times as fast as eager FP32 and {glue:text}`over_same_least:.1f` to
#   {glue:text}`over_same_most:.1f` times as fast as the same engine's FP32.
# - *What would change our mind*: another processor. Without instructions that multiply bytes the
#   order of the engines, and the gain itself, can be another.
