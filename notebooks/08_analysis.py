# %% [markdown]
# # Analysis
#
# **Question.** Taking everything together, what does compression cost, whom, and what should be
# deployed?

# %% tags=["parameters", "remove-cell"]
params_file = "../params/smoke.yaml"
overrides = {}

# %% tags=["remove-cell"]
from fairq_utils.report import analysis, effects, figures, results, rows
from fairq_utils.report.chapter import open_chapter

chapter = open_chapter(params_file, overrides)
frontier = analysis.frontier(chapter)
analysis.glue_frontier(frontier)

# %% [markdown]
# ## All changes at a glance
#
# Change of each gap from the FP32 model, in points: red is a wider gap. Without intervals a heat
# map shows where to look, not what was found.

# %% mystnb={"image": {"alt": "Heat map of parity gap changes: methods down, architectures across"}}
figures.heatmap_figure(chapter.effects, rows.PARITY, chapter.crossed)
# %% mystnb={"image": {"alt": "Heat map of odds gap changes: methods down, architectures across"}}
figures.heatmap_figure(chapter.effects, rows.ODDS, chapter.crossed)
# %% mystnb={"image": {"alt": "Heat map of predictive equality gap changes by method and model"}}
figures.heatmap_figure(chapter.effects, "predictive_equality_difference", chapter.crossed)
# %% [markdown]
# ## Every group, before and after
#
# Accuracy in percent by group, for FP32 and for each static configuration with random calibration,
# averaged over architectures.

# %%
analysis.groups_table(chapter.group_effects)

# %% [markdown]
# ## Accuracy, gap and size
#
# Area is size. Filled points are Pareto-optimal: no other configuration is at least as good in
# accuracy, gap and size and better in one. Hover for the configuration.

# %% mystnb={"image": {"alt": "Scatter of accuracy over parity gap by size, filled on the front"}}
analysis.pareto_figure(frontier)
# %%
analysis.interactive_pareto_figure(frontier)

# %%
analysis.pareto_table(frontier)

# %% [markdown]
# A network that gives everybody the same prediction has no gap, and so a place on this front: the
# metric rewards it, a reader should not. The front is drawn through point estimates. Where
# intervals overlap, being on it is partly luck; the table is a short list to choose from, not a
# ranking.
#
# ## Every metric with its interval
#
# For all attributes crossed, in points; disparate impact as a ratio. The last row is what a model
# would show whose errors do not depend on the group.

# %%
alike = effects.equal_errors(chapter.runs, chapter.params)
analysis.statistics_table(chapter.effects, chapter.crossed, alike)

# %% [markdown]
# ## Files
#
# The same figures are written as data, named as the published study names them, and as LaTeX
# tables:

# %% tags=["nbval-check-output"]
sizes = effects.sizes(chapter.runs)
paths = results.write_results(chapter.effects, sizes, chapter.study)
print(*(path.name for path in paths), sep="\n")

# %% [markdown]
# ## Summary
#
# - {glue:text}`front:.0f` of {glue:text}`configurations:.0f` configurations are Pareto-optimal in
#   accuracy, demographic parity gap and size.
# - A gap, or a change of one, has to be read against what chance alone makes of it:
#   {doc}`02_measuring`.
# - *What would change our mind*: the recorded study, with several training seeds and a larger test
#   set.
