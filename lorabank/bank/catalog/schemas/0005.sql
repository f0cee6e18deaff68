CREATE TABLE "adapter_context" (
	adapter INTEGER NOT NULL, 
	ordinal INTEGER NOT NULL, 
	member INTEGER NOT NULL, 
	row_digest TEXT NOT NULL, 
	part TEXT, 
	CONSTRAINT pk_adapter_context PRIMARY KEY (adapter, ordinal), 
	CONSTRAINT fk_adapter_context_member_adapters FOREIGN KEY(member) REFERENCES adapters (id), 
	CONSTRAINT fk_adapter_context_adapter_adapters FOREIGN KEY(adapter) REFERENCES adapters (id), 
	CONSTRAINT ck_adapter_context_part CHECK (part IN ('lineage', 'without'))
);
CREATE TABLE adapter_files (
	adapter INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	sha256 TEXT NOT NULL, 
	bytes INTEGER NOT NULL, 
	row_digest TEXT NOT NULL, 
	CONSTRAINT pk_adapter_files PRIMARY KEY (adapter, name), 
	CONSTRAINT fk_adapter_files_adapter_adapters FOREIGN KEY(adapter) REFERENCES adapters (id)
);
CREATE TABLE adapter_objects (
	adapter INTEGER NOT NULL, 
	role TEXT NOT NULL, 
	blob TEXT NOT NULL, 
	row_digest TEXT NOT NULL, 
	CONSTRAINT pk_adapter_objects PRIMARY KEY (adapter, role), 
	CONSTRAINT fk_adapter_objects_adapter_adapters FOREIGN KEY(adapter) REFERENCES adapters (id), 
	CONSTRAINT fk_adapter_objects_blob_blobs FOREIGN KEY(blob) REFERENCES blobs (digest)
);
CREATE TABLE adapters (
	id INTEGER NOT NULL, 
	digest TEXT NOT NULL, 
	r INTEGER NOT NULL, 
	lora_alpha FLOAT NOT NULL, 
	use_rslora BOOLEAN NOT NULL, 
	target_modules TEXT NOT NULL, 
	strategy TEXT NOT NULL, 
	penalties TEXT NOT NULL, 
	seed INTEGER NOT NULL, 
	steps INTEGER NOT NULL, 
	wall_seconds FLOAT NOT NULL, 
	device TEXT NOT NULL, 
	bytes INTEGER NOT NULL, 
	head_digest TEXT, 
	versions TEXT NOT NULL, 
	config TEXT NOT NULL, 
	metrics TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	row_digest TEXT NOT NULL, 
	CONSTRAINT pk_adapters PRIMARY KEY (id), 
	CONSTRAINT fk_adapters_id_tasks FOREIGN KEY(id) REFERENCES tasks (position)
);
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
CREATE TABLE bank (
	id INTEGER NOT NULL, 
	bank_id TEXT NOT NULL, 
	format INTEGER NOT NULL, 
	created_at TEXT NOT NULL, 
	created_with TEXT NOT NULL, 
	row_digest TEXT NOT NULL, 
	CONSTRAINT pk_bank PRIMARY KEY (id), 
	CONSTRAINT ck_bank_one_row CHECK (id = 1)
);
CREATE TABLE base_model (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	source TEXT NOT NULL, 
	revision TEXT, 
	config_hash TEXT NOT NULL, 
	fingerprint TEXT NOT NULL, 
	tokenizer_hash TEXT NOT NULL, 
	chat_template_hash TEXT, 
	dtype TEXT NOT NULL, 
	quantisation TEXT, 
	task_type TEXT NOT NULL, 
	hidden_size INTEGER NOT NULL, 
	parameters INTEGER NOT NULL, 
	created_at TEXT NOT NULL, 
	row_digest TEXT NOT NULL, 
	CONSTRAINT pk_base_model PRIMARY KEY (id), 
	CONSTRAINT ck_base_model_one_row CHECK (id = 1)
);
CREATE TABLE blobs (
	digest TEXT NOT NULL, 
	bytes INTEGER NOT NULL, 
	created_at TEXT NOT NULL, 
	row_digest TEXT NOT NULL, 
	CONSTRAINT pk_blobs PRIMARY KEY (digest)
);
CREATE TABLE composition_members (
	composition INTEGER NOT NULL, 
	ordinal INTEGER NOT NULL, 
	adapter INTEGER NOT NULL, 
	row_digest TEXT NOT NULL, known_as TEXT, 
	CONSTRAINT pk_composition_members PRIMARY KEY (composition, ordinal), 
	CONSTRAINT fk_composition_members_adapter_adapters FOREIGN KEY(adapter) REFERENCES adapters (id), 
	CONSTRAINT fk_composition_members_composition_compositions FOREIGN KEY(composition) REFERENCES compositions (id)
);
CREATE TABLE composition_objects (
	composition INTEGER NOT NULL, 
	role TEXT NOT NULL, 
	blob TEXT NOT NULL, 
	row_digest TEXT NOT NULL, 
	CONSTRAINT pk_composition_objects PRIMARY KEY (composition, role), 
	CONSTRAINT fk_composition_objects_blob_blobs FOREIGN KEY(blob) REFERENCES blobs (digest), 
	CONSTRAINT fk_composition_objects_composition_compositions FOREIGN KEY(composition) REFERENCES compositions (id)
);
CREATE TABLE compositions (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	mode TEXT NOT NULL, 
	parameters TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	state TEXT NOT NULL, 
	removed_at TEXT, 
	row_digest TEXT NOT NULL, note TEXT, tags TEXT, 
	CONSTRAINT pk_compositions PRIMARY KEY (id), 
	CONSTRAINT ck_compositions_state CHECK (state IN ('ready', 'removed'))
);
CREATE TABLE "datasets" (
	id INTEGER NOT NULL, 
	task INTEGER NOT NULL, 
	split TEXT NOT NULL, 
	rows INTEGER NOT NULL, 
	columns TEXT NOT NULL, 
	sha256 TEXT NOT NULL, 
	source TEXT NOT NULL, 
	rows_dropped INTEGER NOT NULL, 
	rows_cut INTEGER NOT NULL, 
	blob TEXT, 
	row_digest TEXT NOT NULL, 
	row_digests TEXT, 
	CONSTRAINT pk_datasets PRIMARY KEY (id), 
	CONSTRAINT fk_datasets_task_tasks FOREIGN KEY(task) REFERENCES tasks (position), 
	CONSTRAINT ck_datasets_split CHECK (split IN ('train', 'eval', 'calibration', 'replay')), 
	CONSTRAINT fk_datasets_blob_blobs FOREIGN KEY(blob) REFERENCES blobs (digest), 
	CONSTRAINT uq_datasets_task_split UNIQUE (task, split), 
	CONSTRAINT fk_datasets_row_digests_blobs FOREIGN KEY(row_digests) REFERENCES blobs (digest)
);
CREATE TABLE evaluations (
	"key" TEXT NOT NULL, 
	subject TEXT NOT NULL, 
	stage INTEGER NOT NULL, 
	task TEXT NOT NULL, 
	metric TEXT NOT NULL, 
	value FLOAT NOT NULL, 
	n INTEGER NOT NULL, 
	low FLOAT NOT NULL, 
	high FLOAT NOT NULL, 
	task_id TEXT NOT NULL, 
	settings TEXT NOT NULL, 
	detail TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	row_digest TEXT NOT NULL, 
	CONSTRAINT pk_evaluations PRIMARY KEY ("key"), 
	CONSTRAINT ck_evaluations_task_id CHECK (task_id IN ('given', 'routed'))
);
CREATE TABLE events (
	id INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	name TEXT NOT NULL, 
	detail TEXT NOT NULL, 
	undoes INTEGER, 
	version TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	row_digest TEXT NOT NULL, 
	CONSTRAINT pk_events PRIMARY KEY (id), 
	CONSTRAINT fk_events_undoes_events FOREIGN KEY(undoes) REFERENCES events (id), 
	CONSTRAINT uq_events_undoes UNIQUE (undoes)
);
CREATE TABLE operations (
	id TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	name TEXT NOT NULL, 
	config TEXT NOT NULL, 
	started_at TEXT NOT NULL, 
	pid INTEGER NOT NULL, 
	boot_id TEXT NOT NULL, 
	host TEXT NOT NULL, 
	process_start INTEGER NOT NULL, 
	row_digest TEXT NOT NULL, seen_at TEXT, 
	CONSTRAINT pk_operations PRIMARY KEY (id), 
	CONSTRAINT uq_operations_name UNIQUE (name)
);
CREATE TABLE tasks (
	position INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	task_type TEXT NOT NULL, 
	labels TEXT NOT NULL, 
	statistics TEXT, 
	prompt_template TEXT, 
	created_at TEXT NOT NULL, 
	state TEXT NOT NULL, 
	removed_at TEXT, 
	row_digest TEXT NOT NULL, note TEXT, tags TEXT, first_name TEXT, replaces INTEGER, 
	CONSTRAINT pk_tasks PRIMARY KEY (position), 
	CONSTRAINT ck_tasks_state CHECK (state IN ('training', 'ready', 'failed', 'removed')), 
	CONSTRAINT ck_tasks_position CHECK (position > 0), 
	CONSTRAINT fk_tasks_statistics_blobs FOREIGN KEY(statistics) REFERENCES blobs (digest)
);
CREATE INDEX ix_adapters_digest ON adapters (digest);
CREATE INDEX ix_evaluations_subject ON evaluations (subject);
CREATE INDEX ix_evaluations_task_stage ON evaluations (task, stage);
CREATE UNIQUE INDEX uq_compositions_live_name ON compositions (name) WHERE state != 'removed';
CREATE UNIQUE INDEX uq_tasks_live_name ON tasks (name) WHERE state != 'removed';
