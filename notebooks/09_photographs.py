# %% [markdown]
# # Your own photographs
#
# **Question.** How does the same study run on photographs, and what is refused?
#
# Rendered people are where this book starts, because anyone can have them. Three collections of
# photographs are read as they are distributed, and decoded once into a file that is memory-mapped:
# what training holds in memory does not grow with their number.

# %% tags=["parameters", "remove-cell"]
params_file = "../params/smoke.yaml"
overrides = {}

# %% tags=["remove-cell"]
from fairq_utils.report import chapter as chapters
from fairq_utils.report import photographs
from fairq_utils.study import recorded

chapter = chapters.open_chapter(params_file, overrides)
glue = chapter.glue

# %% [markdown]
# ## Step by step
#
# 1. **Read the terms, then fetch the files.** `fairq data get celeba --root data/celeba` says who
#    owns the pictures and what they may be used for; with `--accept-licence` it downloads what the
#    licence lets it. The folder may as well be filled by hand.

# %% tags=["nbval-check-output"]
photographs.collections()

# %% [markdown]
#    Images of your own need no code: put a table `labels.csv` beside them, whose first column names
#    the files and whose others are a target, groups and perhaps `split`, and write
#    `data: {name: folder, root: faces, target: smiling, groups: {sex: gender, age: age}}`.
# 2. **Vouch for the folder.** `fairq data check celeba --root data/celeba` counts people by group
#    beside the published counts, and lists what is damaged, missing, unlabelled, of another size,
#    or there twice, within a split or across. It ends in 0 or 1.
# 3. **Ask who is in it.** `fairq data describe celeba --root data/celeba` prints groups, base rates
#    and the gap that a perfect classifier would have.
# 4. **Run the study.** `make book PROFILE=celeba`, or `utkface`, or `fairface`. Without a GPU begin
#    with a part: a copy of the params file with fewer and smaller pictures (`data.images`,
#    `data.size: 64`), one architecture and one seed under `training`, and few methods; `fairq plan`
#    lists what there is to compute.
#
# Splits are the collection's own. What it does not hold out is carved by the hash of a file's name:
# adding a picture moves no other. A picture or label that cannot be used is never dropped in
# silence; more than `data.max_bad` of them stop the study before anything is computed.

# %% [markdown]
# ## What is refused
#
# Each row is a folder with one fault, and what is said about it:

# %%
photographs.refusals(recorded.read_rows("refusals"))

# %% [markdown]
# ## Throughput
#
# A GPU must not wait for pictures to be decoded. {glue:text}`09_photographs.ipynb::decoded:,.0f`
# pictures a second are decoded to {glue:text}`09_photographs.ipynb::size:.0f` pixels by one core,
# once; {glue:text}`09_photographs.ipynb::cached:,.0f` a second are read back in shuffled batches,
# {glue:text}`09_photographs.ipynb::ratio:,.0f` times as many. Memory that is not the file's own
# grows by {glue:text}`09_photographs.ipynb::memory_small:.1f` MB over
# {glue:text}`09_photographs.ipynb::images_small:,.0f` pictures and by
# {glue:text}`09_photographs.ipynb::memory_large:.1f` MB over
# {glue:text}`09_photographs.ipynb::images_large:,.0f`.

# %% tags=["remove-cell"]
photographs.glue_throughput(recorded.read_benchmark("data"))

# %% [markdown]
# ## The people of this study

# %% tags=["wide"] mystnb={"image": {"alt": "Rows of faces, each titled with groups and label"}}
photographs.sheet(chapter)
# %%
photographs.described(chapter)
# %% tags=["remove-cell"]
glue("whose", photographs.whose(chapter))

# %% [markdown]
# {glue:text}`09_photographs.ipynb::whose:s`
#
# ## Summary
#
# - Photographs take the place of rendered people by the `data` section of a params file; every
#   chapter but those about rendered people is then about them.
# - What is wrong with a folder is said with file and line, and counted.
# - *What would change our mind*: a collection that these readers take for what it is not. The
#   published counts are what `fairq data check` holds against that.
