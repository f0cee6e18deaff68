"""The shelves of named parts: a new method is one file, and one line here.

Other packages add to a shelf by an entry point in its group, as `lorabank.core.shelf` says.
"""

from __future__ import annotations

from lorabank.core.shelf import Shelf, Shelves

TASK_TYPES = Shelf(
    "task type",
    "task_types",
    {
        "SEQ_CLS": "lorabank.models.tasks.classification:Classification",
        "CAUSAL_LM": "lorabank.models.tasks.causal_lm:CausalLM",
        "SEQ_2_SEQ_LM": "lorabank.models.tasks.seq2seq_lm:Seq2SeqLM",
    },
    chosen="init --task-type {name}",
)

SITES = Shelf(
    "site",
    "sites",
    {
        "linear": "lorabank.models.bases.kinds.linear:Linear",
        "conv1d": "lorabank.models.bases.kinds.conv1d:Conv1D",
        "embedding": "lorabank.models.bases.kinds.embedding:Embedding",
        "conv1d-nn": "lorabank.models.bases.kinds.convolution:Conv1d",
        "conv2d": "lorabank.models.bases.kinds.convolution:Conv2d",
        "conv3d": "lorabank.models.bases.kinds.convolution:Conv3d",
        "quantised": "lorabank.models.bases.kinds.quantised:Quantised",
        "bias": "lorabank.models.bases.kinds.bias:OfBias",
    },
)

QUANTISERS = Shelf(
    "quantiser",
    "quantisers",
    {
        "nf4": "lorabank.models.bases.quantised.nf4:NF4",
        "int8": "lorabank.models.bases.quantised.int8:Int8",
        "hqq": "lorabank.models.bases.quantised.hqq:HQQ",
    },
    given="--quantise {name}:{key}={value}",
    chosen="init --quantise {name}",
)

CORRECTIONS = Shelf(
    "correction",
    "corrections",
    {
        "lqer": "lorabank.models.bases.quantised.corrections.lqer:LQER",
        "loftq": "lorabank.models.bases.quantised.corrections.loftq:LoftQ",
        "lq-lora": "lorabank.models.bases.quantised.corrections.lq_lora:LQLora",
    },
    given="--quantise QUANTISER+{name}:{key}={value}",
    chosen="init --quantise QUANTISER+{name}",
)

# ------------------------------------------------------------------------------------------------------- training

STRATEGIES = Shelf(
    "strategy",
    "strategies",
    {
        "olora": "lorabank.training.strategies.presets:OLORA",
        "olora-projected": "lorabank.training.strategies.projected:PROJECTED",
        "inclora": "lorabank.training.strategies.presets:INCLORA",
        "nlora": "lorabank.training.strategies.presets:NLORA",
        "inflora": "lorabank.training.strategies.inflora:INFLORA",
        "amlora": "lorabank.training.strategies.amlora:AMLORA",
        "isolated": "lorabank.training.strategies.presets:ISOLATED",
        "seqlora": "lorabank.training.strategies.presets:SEQLORA",
        "ewc": "lorabank.training.strategies.ewc:EWC",
        "replay": "lorabank.training.strategies.replay:REPLAY",
        "olora-distil": "lorabank.training.strategies.olora_distil:OLORA_DISTIL",
        "der": "lorabank.training.strategies.der:DER",
        "lwf": "lorabank.training.strategies.lwf:LWF",
        "gem": "lorabank.training.strategies.gem:GEM",
        "agem": "lorabank.training.strategies.gem:AGEM",
        "si": "lorabank.training.strategies.si:SI",
        "mas": "lorabank.training.strategies.mas:MAS",
        "slao": "lorabank.training.strategies.slao:SLAO",
        "joint": "lorabank.training.strategies.replay:JOINT",
        "online-lora": "lorabank.training.strategies.online_lora:ONLINE_LORA",
    },
    chosen="add-task --strategy {name}",
)

ALONE = "isolated"
"""The strategy that messages propose where no earlier adapter may take part."""

STREAMING = "online-lora"
"""The strategy by which a stream is learnt whose tasks are not known."""

REFERENCES = Shelf(
    "reference",
    "references",
    {"full": "lorabank.sequences.references.full:FULL"},
    chosen="sequence run, which measures it if {name} is among the strategies of the file",
    instead="it trains weights of the base itself and not an adapter, and a bank stores adapters alone: the command "
    "'sequence run' measures it, if its name is among the strategies of the file",
)
STRATEGIES.beside = REFERENCES

VARIANTS = Shelf(
    "variant",
    "variants",
    {
        "lora": "lorabank.training.variants.lora:Lora",
        "lora-plus": "lorabank.training.variants.lora_plus:LoraPlus",
        "dora": "lorabank.training.variants.dora:Dora",
        "lora-fa": "lorabank.training.variants.lora_fa:LoraFA",
        "asymmetric": "lorabank.training.variants.asymmetric:Asymmetric",
        "vera": "lorabank.training.variants.vera:Vera",
        "nola": "lorabank.training.variants.nola:Nola",
        "tied-lora": "lorabank.training.variants.tied_lora:TiedLora",
        "vb-lora": "lorabank.training.variants.vb_lora:VBLora",
        "lora-xs": "lorabank.training.variants.lora_xs:LoraXS",
        "trilora": "lorabank.training.variants.trilora:TriLora",
        "lotr": "lorabank.training.variants.lotr:LoTR",
        "loretta": "lorabank.training.variants.loretta:Loretta",
        "melora": "lorabank.training.variants.melora:MELora",
        "adalora": "lorabank.training.variants.adalora:AdaLora",
        "sora": "lorabank.training.variants.sora:SoRA",
        "dylora": "lorabank.training.variants.dylora:DyLora",
        "dora-dynamic": "lorabank.training.variants.dora_dynamic:DynamicDora",
        "aflora": "lorabank.training.variants.aflora:AFLora",
        "sparse": "lorabank.training.variants.sparse:SparseAdapter",
        "roselora": "lorabank.training.variants.roselora:RoseLora",
        "prilora": "lorabank.training.variants.prilora:PRILora",
        "lora-drop": "lorabank.training.variants.lora_drop:LoraDrop",
        "autolora": "lorabank.training.variants.autolora:AutoLora",
        "alora": "lorabank.training.variants.alora:ALora",
        "bitfit": "lorabank.training.variants.bitfit:BitFit",
        "ia3": "lorabank.training.variants.ia3:IA3",
        "relora": "lorabank.training.variants.relora:ReLora",
        "cola": "lorabank.training.variants.cola:Cola",
        "xgblora": "lorabank.training.variants.xgblora:XgbLora",
        "delta-lora": "lorabank.training.variants.delta_lora:DeltaLora",
        "galore": "lorabank.training.variants.galore:GaLore",
        "flora": "lorabank.training.variants.flora:Flora",
        "bilora": "lorabank.training.variants.bilora:BiLora",
        "qa-lora": "lorabank.training.variants.qa_lora:QaLora",
    },
    refused={
        "loraprune": "it removes heads and units of the base, which all tasks share: it makes another base model",
        "activated-lora": "its delta weight depends on the place of a token, so it cannot be summed with others",
        "loretta-adp": "it is a layer with a non-linearity behind a module, and no delta weight as loretta is",
        "adapters": "they are layers with a non-linearity behind a module, and no delta weight",
        "diff-pruning": "its delta weight is sparse and of full rank, which is not the form of an adapter",
        "prompt-tuning": "it trains inputs of the model, and no delta weight",
        "prefix-tuning": "it trains keys and values of the attention, and no delta weight",
    },
    chosen="add-task --variant {name}",
)

_NAMES = "LOHA LOKR OFT BOFT HRA FOURIERFT WAVEFT MISS RANDLORA C3A SHIRA ROAD DELORA"
_OF_PEFT = {f"peft:{name.lower()}": f"lorabank.training.variants.peft:{name}" for name in _NAMES.split()}
TUNERS = Shelf("variant", "tuners", _OF_PEFT, chosen=f"add-task --variant {{name}} --strategy {ALONE}")
"""Variants that PEFT trains and loads: what they train has no factors, so that such a task answers alone."""

MIXTURES = Shelf(
    "variant", "mixtures", {"hydralora": "lorabank.training.variants.hydralora:HydraLora"}, chosen=TUNERS.chosen
)
"""Variants whose adapter weighs its own parts by the input: no delta weight stands for it, so it answers alone too."""

EVERY_VARIANT = Shelves(VARIANTS, MIXTURES, TUNERS)
"""What ``--variant`` may name."""

STARTS = Shelf(
    "start",
    "starts",
    {
        "kaiming": "lorabank.training.starts.kaiming:Kaiming",
        "gaussian": "lorabank.training.starts.gaussian:Gaussian",
        "orthogonal": "lorabank.training.starts.orthogonal:Orthogonal",
        "pissa": "lorabank.training.starts.pissa:PiSSA",
        "milora": "lorabank.training.starts.milora:MiLoRA",
        "olora": "lorabank.training.starts.olora:OLoRA",
        "eva": "lorabank.training.starts.eva:EVA",
        "corda": "lorabank.training.starts.corda:CorDA",
        "lora-ga": "lorabank.training.starts.lora_ga:LoRAGA",
    },
    chosen="add-task --start {name}",
)

SAVINGS = Shelf(
    "saving",
    "savings",
    {
        "gradient-checkpointing": "lorabank.training.savings.gradient_checkpointing:GradientCheckpointing",
        "dropbp": "lorabank.training.savings.dropbp:DropBP",
        "hiddenkey": "lorabank.training.savings.hiddenkey:HiddenKey",
        "s2-attention": "lorabank.training.savings.s2_attention:S2Attention",
    },
    chosen="add-task --saving {name}",
)

PENALTIES = Shelf(
    "penalty",
    "penalties",
    {
        "orthogonal": "lorabank.training.penalties.orthogonal:Orthogonal",
        "orthogonal-normalized": "lorabank.training.penalties.orthogonal:OrthogonalNormalized",
        "frobenius": "lorabank.training.penalties.frobenius:Frobenius",
        "l1": "lorabank.training.penalties.l1:L1",
        "ewc": "lorabank.training.penalties.ewc:EWC",
        "si": "lorabank.training.penalties.si:SI",
        "mas": "lorabank.training.penalties.mas:MAS",
        "norm": "lorabank.training.penalties.norm:Norm",
    },
    chosen="add-task --penalty {name}",
)

OPTIMIZERS = Shelf(
    "optimizer",
    "optimizers",
    {
        "adamw": "lorabank.training.optimizers.adamw:AdamW",
        "adafactor": "lorabank.training.optimizers.adafactor:Adafactor",
        "adamw-8bit": "lorabank.training.optimizers.bitsandbytes:AdamW8bit",
        "adamw-paged": "lorabank.training.optimizers.bitsandbytes:PagedAdamW",
    },
    chosen="add-task --optimizer {name}",
)

# ---------------------------------------------------------------------------------------------------- composition

COMPOSERS = Shelf(
    "mode",
    "composers",
    {
        "merged": "lorabank.compose.merged:Merged",
        "manual": "lorabank.compose.merged:Merged",  # the name that it had first
        "gated": "lorabank.compose.gated:Gated",
        "attention": "lorabank.compose.gated:Gated",  # the name that it had first
        "routed": "lorabank.compose.routed:Routed",
        "prototype": "lorabank.compose.routed:Prototype",  # the name that it had first
    },
    chosen="compose --mode {name}",
)

ROUTING = "routed"
"""The mode that messages propose where every text should go to a task of its own."""

SUMMING = "manual"
"""The mode that messages propose where several adapters should become one."""

MERGERS = Shelf(
    "merger",
    "mergers",
    {
        "weighted": "lorabank.compose.mergers.weighted:Weighted",
        "task-arithmetic": "lorabank.compose.mergers.task_arithmetic:TaskArithmetic",
        "ties": "lorabank.compose.mergers.entrywise.ties:TIES",
        "dare": "lorabank.compose.mergers.entrywise.dare:DARE",
        "dare-ties": "lorabank.compose.mergers.entrywise.dare_ties:DARETIES",
        "magnitude-prune": "lorabank.compose.mergers.entrywise.magnitude_prune:MagnitudePrune",
        "compeft": "lorabank.compose.mergers.entrywise.compeft:ComPEFT",
        "knots": "lorabank.compose.mergers.knots:KnOTS",
        "svd": "lorabank.compose.mergers.svd:SVD",
        "byom": "lorabank.compose.mergers.byom:BYOM",
        "l-lora": "lorabank.compose.mergers.l_lora:LLoRA",
        "peft-linear": "lorabank.compose.mergers.peft_linear:PEFTLinear",
        "slao": "lorabank.compose.mergers.slao:SLAO",
        "fisher": "lorabank.compose.mergers.fitted.fisher:Fisher",
        "regmean": "lorabank.compose.mergers.fitted.regmean:RegMean",
        "learned": "lorabank.compose.mergers.fitted.learned:Learned",
        "lorahub": "lorabank.compose.mergers.fitted.lorahub:LoRAHub",
        "weight-search": "lorabank.compose.mergers.fitted.weight_search:WeightSearch",
    },
    chosen="compose --mode merged --merger {name}",
)

USUAL_ROUTER = "layered"
"""Routes where no router is named; the gates of whole texts read its probabilities."""

ROUTERS = Shelf(
    "router",
    "routers",
    {
        "kmeans": "lorabank.compose.routers.kmeans:KMeans",
        "gaussian": "lorabank.compose.routers.gaussian:Gaussian",
        "layered": "lorabank.compose.routers.layered:Layered",
        "similarity": "lorabank.compose.routers.similarity:Similarity",
        "ridge": "lorabank.compose.routers.ridge:Ridge",
    },
    chosen="compose --mode routed --router {name}",
)

GATES = Shelf(
    "gate",
    "gates",
    {
        "attention": "lorabank.models.gates.attention:Attention",
        "attention-token": "lorabank.models.gates.attention_token:AttentionToken",
        "x-lora": "lorabank.models.gates.x_lora:XLora",
        "arrow": "lorabank.models.gates.arrow:Arrow",
        "mixlora": "lorabank.models.gates.mixlora:MixLoRA",
        "moe": "lorabank.models.gates.moe:MoE",
        "sapt": "lorabank.models.gates.sapt:Sapt",
        "mocl": "lorabank.models.gates.mocl:MoCL",
        "hydralora": "lorabank.models.gates.hydralora:HydraLoRA",
    },
    chosen="compose --mode gated --gate {name}",
)

FIRST_GATE = "attention", "attention-token"
"""The name that the first gate had while records did not say what they weigh, and its name now."""

# ----------------------------------------------------------------------------------------------- data and scoring

FORMATS = Shelf(
    "format",
    "formats",
    {
        ".jsonl": "lorabank.data.formats.jsonl:JsonLines",
        ".json": "lorabank.data.formats.json_list:JsonList",
        ".csv": "lorabank.data.formats.delimited:Csv",
        ".tsv": "lorabank.data.formats.delimited:Tsv",
        ".txt": "lorabank.data.formats.delimited:DelimitedText",
        ".xlsx": "lorabank.data.formats.workbook:Workbook",
        ".parquet": "lorabank.data.formats.parquet:Parquet",
    },
)

FORMS = Shelf(
    "form",
    "forms",
    {
        "classification": "lorabank.data.forms.plain:CLASSIFICATION",
        "prompt-completion": "lorabank.data.forms.plain:PROMPT_COMPLETION",
        "messages": "lorabank.data.forms.chat:MESSAGES",
        "alpaca": "lorabank.data.forms.plain:ALPACA",
        "sharegpt": "lorabank.data.forms.chat:SHAREGPT",
        "text": "lorabank.data.forms.plain:TEXT",
    },
    chosen="add-task --format {name}",
)

METRICS = Shelf(
    "metric",
    "metrics",
    {
        "average_accuracy": "lorabank.evaluation.metrics:average_accuracy",
        "average_incremental_accuracy": "lorabank.evaluation.metrics:average_incremental_accuracy",
        "learning_accuracy": "lorabank.evaluation.metrics:learning_accuracy",
        "backward_transfer": "lorabank.evaluation.metrics:backward_transfer",
        "backward_transfer.div_t": "lorabank.evaluation.metrics:backward_transfer_div_t",
        "forward_transfer": "lorabank.evaluation.metrics:forward_transfer",
        "forgetting": "lorabank.evaluation.metrics:forgetting",
        "forgetting.first_last": "lorabank.evaluation.metrics:forgetting_first_last",
        "forgetting.max_all": "lorabank.evaluation.metrics:forgetting_max_all",
        "intransigence": "lorabank.evaluation.metrics:intransigence",
    },
)

SCORINGS = Shelf(
    "scoring",
    "scorings",
    {
        "likelihood": "lorabank.models.answering.scorings.likelihood:Likelihood",
        "generation": "lorabank.models.answering.scorings.generation:Generation",
        "perplexity": "lorabank.models.answering.scorings.perplexity:Perplexity",
    },
    chosen="add-task --scoring {name}",
)

PERPLEXITY = "perplexity"
"""The scoring of a text that is no answer to anything."""

GENERATING = "generation"
"""The scoring of whatever is asked for free text: ``generate``, and rows whose answers are not labels."""

TEXT_METRICS = Shelf(
    "text metric",
    "text_metrics",
    {
        "exact_match": "lorabank.evaluation.text_metrics:exact_match",
        "token_f1": "lorabank.evaluation.text_metrics:token_f1",
        "rouge_l": "lorabank.evaluation.text_metrics:rouge_l",
    },
    chosen="eval --metric {name}",
)

SHELVES = (
    STRATEGIES, REFERENCES, VARIANTS, MIXTURES, TUNERS, STARTS, SAVINGS, PENALTIES, OPTIMIZERS, COMPOSERS, MERGERS,
    ROUTERS, GATES, TASK_TYPES, SITES, QUANTISERS, CORRECTIONS, FORMS, FORMATS, SCORINGS, METRICS, TEXT_METRICS,
)  # fmt: skip
"""Every shelf, in the order in which methods are listed."""

TRAINING = (STRATEGIES, VARIANTS, STARTS, SAVINGS, PENALTIES, OPTIMIZERS, MIXTURES, TUNERS)
"""Those whose methods train an adapter; ``add-task --set`` reaches them and those of `ROWS`."""

ROWS = (FORMS, FORMATS, SCORINGS)
"""Those whose methods read a task's rows and ask for their answers."""
