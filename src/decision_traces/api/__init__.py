"""What Python users call: `trace` makes a run, `Run` reads, analyses and shows one; public by `decision_traces`."""

import warnings

# Without ipywidgets a bar is text, which is no news to the user; huggingface_hub and our own bar make tqdm advise it.
warnings.filterwarnings("ignore", message="IProgress not found")
