# %% [markdown]
# # What a study costs
#
# **Question.** How long would the study on CelebA itself take?

# %% tags=["parameters", "remove-cell"]
params_file = "../params/smoke.yaml"
overrides = {}

# %% tags=["remove-cell"]
from fairq_utils.report import cost
from fairq_utils.report.chapter import open_chapter
from fairq_utils.study.cost import published

open_chapter(params_file, overrides)
studies = cost.planned()
cost.glue_cost(studies)

# %% [markdown]
# About {glue:text}`celeba_whole:.0f` hours of one GPU, for {glue:text}`architectures:.0f`
# architectures, {glue:text}`seeds:.0f` seeds and {glue:text}`celeba_runs:,.0f` runs at
# {glue:text}`celeba_pixels:.0f` pixels (`params/celeba.yaml`). The two other collections take less:

# %% tags=["nbval-check-output"]
cost.studies_table(studies)

# %% [markdown]
# A study is a list of runs, known before the first of them is computed, and a run passes so many
# images through a network, so many times. So its time is a sum of images over images per second:
# linear in images and seeds; architectures and methods add. Runs that share a calibration share its
# time. `fairq plan` prints this sum for any params file, by the pace of the runs that are done
# already.
#
# ## Where CelebA's hours go

# %% tags=["nbval-check-output"]
cost.hours_table(studies["celeba"].hours)

# %% [markdown]
# By what a run does: *train* an FP32 model; *quantize* it and evaluate; *choose* ranges, layers or
# bits; *learn* roundings; *fine-tune* (QAT, constraints on groups). Training is
# {glue:text}`share_train:.0f` % of the hours, and fine-tuning {glue:text}`share_fine_tune:.0f` %:
# every method that fine-tunes does so for every number of bits and every calibration draw. Accuracy
# control is counted as if it took all the steps that it may.
#
# ## Rates
#
# These are images per second in mixed precision at {glue:text}`celeba_pixels:.0f` pixels that the
# author of timm {cite}`wightman2019timm` has published with its models; no GPU was used for this
# page.

# %% tags=["nbval-check-output"]
cost.rates_table(published())

# %% [markdown]
# Beyond them it is assumed that
#
# - *single precision* is {glue:text}`single:.0f` times as slow as mixed precision. FP32 models are
#   trained at the precision of their recipe; fine-tuning and all predictions are in single
#   precision. Were it as fast, CelebA would take {glue:text}`whole_least:.0f` hours; were it
#   {glue:text}`single_most:.0f` times as slow, {glue:text}`whole_most:.0f`;
# - *quantization grids* make a pass {glue:text}`grids:.0f` times as slow;
# - *SqueezeNet*, which is not in the files, is MobileNetV2 slowed by their ratio of multiply-adds,
#   {glue:text}`stand_in_ratio:.2f`;
# - reading photographs keeps up with the GPU.
#
# So the hours are meant to one digit, and rather too few than too many.
#
# ## Summary
#
# - The study on CelebA takes about {glue:text}`celeba_whole:.0f` GPU hours by published rates, on
#   UTKFace {glue:text}`utkface_whole:.0f`, on FairFace {glue:text}`fairface_whole:.0f`.
# - *What would change our mind*: a measurement on a GPU.
