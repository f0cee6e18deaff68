BEGIN TRANSACTION;
CREATE TABLE adapter_context (
	adapter INTEGER NOT NULL, 
	ordinal INTEGER NOT NULL, 
	member INTEGER NOT NULL, 
	row_digest TEXT NOT NULL, 
	CONSTRAINT pk_adapter_context PRIMARY KEY (adapter, ordinal), 
	CONSTRAINT fk_adapter_context_adapter_adapters FOREIGN KEY(adapter) REFERENCES adapters (id), 
	CONSTRAINT fk_adapter_context_member_adapters FOREIGN KEY(member) REFERENCES adapters (id)
);
INSERT INTO "adapter_context" VALUES(2,0,1,'22f3e19dc7ecd4476dda04ad79844c5834269c7838eec1faa020ec7f156236f8');
INSERT INTO "adapter_context" VALUES(4,0,1,'d75283192138b0cae0e70efafebc3248970ef1e9a36807fec4fff84e2d95be0f');
CREATE TABLE adapter_files (
	adapter INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	sha256 TEXT NOT NULL, 
	bytes INTEGER NOT NULL, 
	row_digest TEXT NOT NULL, 
	CONSTRAINT pk_adapter_files PRIMARY KEY (adapter, name), 
	CONSTRAINT fk_adapter_files_adapter_adapters FOREIGN KEY(adapter) REFERENCES adapters (id)
);
INSERT INTO "adapter_files" VALUES(1,'adapter_config.json','9cae11a6a97c085077a6de5ec48cbcdd87e9f1620578658009db688857d47131',29,'60a481b8df6ae3792ed0dae7c68032ca209672efacd07fb428459f43c63082a0');
INSERT INTO "adapter_files" VALUES(1,'adapter_model.safetensors','802ac505d43c5dcf842195717b235e9c44c4c201aefbb947d6723ec20a512591',82,'a80a025f5910903c62dc87db292beff4a6cf62714edcc3584bafdae838dbd52a');
INSERT INTO "adapter_files" VALUES(2,'adapter_config.json','9cae11a6a97c085077a6de5ec48cbcdd87e9f1620578658009db688857d47131',29,'4498cef3a0220867918904253ad0721fac500657ca351fe085fedbe1ca9667bf');
INSERT INTO "adapter_files" VALUES(2,'adapter_model.safetensors','dde2a0c16657a5d990109600824f380d87f92a4a90b02470805d44ba32927f30',82,'ebec74846c93194ef2d8beafb4b57c4f07876350255c52482206481eeaff25e3');
INSERT INTO "adapter_files" VALUES(3,'adapter_config.json','9cae11a6a97c085077a6de5ec48cbcdd87e9f1620578658009db688857d47131',29,'7bfc857db36d15a004043cf35a9dcbd5c4cde42b10bd397423b277b695b980d3');
INSERT INTO "adapter_files" VALUES(3,'adapter_model.safetensors','9ff6840aaf104a6b3fb47f2d52dd99e84aba895e0442c3410e6bcbdcad06ba1a',82,'1c3a0ec94043290a34d17965dc57b02b80eb54afa4881c3054529577603c3964');
INSERT INTO "adapter_files" VALUES(4,'adapter_config.json','9cae11a6a97c085077a6de5ec48cbcdd87e9f1620578658009db688857d47131',29,'87a4e01a592d4d649183d06c9266420a0bb5ed9b74836734fcf49020028337f1');
INSERT INTO "adapter_files" VALUES(4,'adapter_model.safetensors','46b68c9cf50daa8d1551da192ae1de35c734a57ee3fcbaed17e2c693c864dcd8',82,'c11352d9b3ae4dc62fbcb8a728e37683e24533571598d438418f2f2150299041');
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
INSERT INTO "adapters" VALUES(1,'04f966f9dae3abb1f53e7f84ca03926fd6a6893142183f2b57b8088e4a2a0606',8,32.0,0,'["encoder.query","encoder.value"]','olora','{"orthogonal":0.5}',7,120,3.0,'cpu',111,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','{"torch":"2.13"}','{"epochs":5.0,"labels":["no","yes"]}','{"loss":[0.7,0.1]}','2026-02-03T04:05:03.000000+00:00','8b534b3509be939c44ee2067a944fc948202ce4ef52b63ef6e3cda633dd95c5f');
INSERT INTO "adapters" VALUES(2,'bcbbfb78f9542a472a45d29cbb6fd913d305b638971192e370263c3028963a17',8,32.0,0,'["encoder.query","encoder.value"]','olora','{"orthogonal":0.5}',7,120,3.0,'cpu',111,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','{"torch":"2.13"}','{"epochs":5.0,"labels":["no","yes"]}','{"loss":[0.7,0.1]}','2026-02-03T04:05:08.000000+00:00','8001b4b3c89ac645144787ae899d562b92655a4adb56d3de200d04a1d5f76dbc');
INSERT INTO "adapters" VALUES(3,'0cd5e23516fe2194f62f6b7330e50cec80029acb3c8bcb5c9408857beebf5078',8,32.0,0,'["encoder.query","encoder.value"]','olora','{"orthogonal":0.5}',7,120,3.0,'cpu',111,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','{"torch":"2.13"}','{"epochs":5.0,"labels":["no","yes"]}','{"loss":[0.7,0.1]}','2026-02-03T04:05:13.000000+00:00','f66f73945943ae81c8afc9d5618747d52bf2b8698e16f94329a4f40ac5a29b0d');
INSERT INTO "adapters" VALUES(4,'7b7c84cb61dff8fa8c719e62202102876267435332b1bff3515992bccd8e0a93',8,32.0,1,'["encoder.query","encoder.value"]','olora','{"orthogonal":0.5}',7,120,3.0,'cpu',111,NULL,'{"torch":"2.13"}','{"epochs":5.0,"labels":["no","yes"]}','{"loss":[0.7,0.1]}','2026-02-03T04:05:18.000000+00:00','48475dc25b7a02637ab299cb3eff096367b96585766f846d0af718a6e9902b1e');
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
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
INSERT INTO "bank" VALUES(1,'cd5957cd4064103df3ef06cb4740d0d0',1,'2026-02-03T04:05:01.000000+00:00','0.1.0','0684fd114a001e502942f81dc4c142ece0196985f99673ab80fdaae54bde4a3a');
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
INSERT INTO "base_model" VALUES(1,'tiny','hub','a1b2c3','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','7777777777777777777777777777777777777777777777777777777777777777','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','float32','int8','SEQ_CLS',32,1000,'2026-02-03T04:05:01.000000+00:00','e260a1ccb066536bbcd30e738d6e1cc3e560bb23dbdaa4fb4de21c52352c7593');
CREATE TABLE blobs (
	digest TEXT NOT NULL, 
	bytes INTEGER NOT NULL, 
	created_at TEXT NOT NULL, 
	row_digest TEXT NOT NULL, 
	CONSTRAINT pk_blobs PRIMARY KEY (digest)
);
INSERT INTO "blobs" VALUES('79cf15bb4e253884c158a294efdd5b5f0d53598d64dd80e4e48f2fb7a8f10803',24,'2026-02-03T04:05:04.000000+00:00','a153d246acc4feef9428f3965fe75bb4f71eb893f76e5071132b2049f115b649');
INSERT INTO "blobs" VALUES('c4c6240aa51e92f0f5ab9b3f29824bee7261462104e789c959b2e222358fc0b1',22,'2026-02-03T04:05:05.000000+00:00','874dc25cf48135d331fa5342ce8da0264382710ca4e481904c9c3fc97866d4a9');
INSERT INTO "blobs" VALUES('efebf84186518382e971c0a8034ce538c26315c6d1e12c9751eb8ef7337dc165',85,'2026-02-03T04:05:06.000000+00:00','985203080bf23c1af4a7464be8f59e4ca58a74dcb3ee5137938f8fb972e54da9');
INSERT INTO "blobs" VALUES('131b917c95beac293ba1041305e0d9dc127dc8ed53f567f17640876fba52a80a',85,'2026-02-03T04:05:09.000000+00:00','3a817e06be8952bad14cc718adbbd8d3c3551f503c0f0417edb99a5b0aac28a8');
INSERT INTO "blobs" VALUES('30a2866478b0aa4955e9cbb25c1cca4e251c626d9632a8661130b013ecd72c72',19,'2026-02-03T04:05:10.000000+00:00','63854850689d3d9ee3cb28a8dbf7ef5789014dca29130a18a05fc7a9e66472fd');
INSERT INTO "blobs" VALUES('345fcb429c0a7568bff3d0283e329bcd33fb78dd73095db1fa1ef811582f1c21',17,'2026-02-03T04:05:11.000000+00:00','8e17be645ef07850af0394494ba44e4e936e2368505af1a1c66f7a3bfb1fb8ab');
INSERT INTO "blobs" VALUES('7f2b186d457c84d2e148b46a4c3a7ebf289368dac4eb2a00f102e4fc901a1170',17,'2026-02-03T04:05:14.000000+00:00','c45add0ca16332e16e49838b372cb9708cd7ba4844e3bdd1cea78ef318a0a084');
INSERT INTO "blobs" VALUES('953ca8e770a83c5195e04e99829542e7139435b1fe7f362f27e1bfa5cae4ad29',19,'2026-02-03T04:05:15.000000+00:00','c41690cc729331e60d07284d6cad8d04547fcba7981a38ec3ded73a502c21487');
INSERT INTO "blobs" VALUES('ba4f6f2bb9f3b595578658e28ca077a2e53f8f5bd6a96c6cbba7987ff246c402',85,'2026-02-03T04:05:16.000000+00:00','00abd4f46a28b9133a4f4f79f009f0ca40340a18c33341cb373b44a19fcb5094');
INSERT INTO "blobs" VALUES('67cad0f141125d221c3b883e9bb5a36b452e5778889e891a120021279b0143f8',20,'2026-02-03T04:05:19.000000+00:00','4754146ab09ed5f99cd888dd8c7f85953213f9c09ae7c5838787ee8804c400d1');
INSERT INTO "blobs" VALUES('d8bacc984e96320907ff8f938f4749044ce8e52e7e9d170cf300641f03b11f9b',85,'2026-02-03T04:05:20.000000+00:00','50698c040e5be29f2b742fc24913714848ab5ca9d69b64fdd3cbbb466df1db9c');
INSERT INTO "blobs" VALUES('eead03030a4c22b07e2f28f823b749f1602cfe8e191f2ccc6f9c369146280657',18,'2026-02-03T04:05:21.000000+00:00','e034b90539c1bfe4f2df49fff6cd23293f46a4efb52b89638c4a657ca7a26ee5');
INSERT INTO "blobs" VALUES('45a328b4975fa4ddd6c03d34fce0d5799504cb914c4219e8aec359701cc3ca85',78,'2026-02-03T04:05:24.000000+00:00','0dc15509f94f85083aa4e8a8b88693f278a299da522c88d9b456691ba536f2df');
INSERT INTO "blobs" VALUES('35d2d63f2c6d9dafbba2e72242c8336a2708def679ba8ea74dc4da4fe68a7e44',78,'2026-02-03T04:05:28.000000+00:00','50f9f53b7ccf667f03691a523127d27f857b21ea2ced7f9fc5de88ded133561c');
CREATE TABLE composition_members (
	composition INTEGER NOT NULL, 
	ordinal INTEGER NOT NULL, 
	adapter INTEGER NOT NULL, 
	row_digest TEXT NOT NULL, 
	CONSTRAINT pk_composition_members PRIMARY KEY (composition, ordinal), 
	CONSTRAINT fk_composition_members_adapter_adapters FOREIGN KEY(adapter) REFERENCES adapters (id), 
	CONSTRAINT fk_composition_members_composition_compositions FOREIGN KEY(composition) REFERENCES compositions (id)
);
INSERT INTO "composition_members" VALUES(1,0,1,'6e1bd57d05e15d9278b8313c3b2dccafe1acc9732948601d93b0d492121537a3');
INSERT INTO "composition_members" VALUES(1,1,2,'14e6faed5547f31bd1a4dc38416c7165cc83399c5df2333ce9f8f8b90f9f6633');
INSERT INTO "composition_members" VALUES(2,0,1,'1121daa7b81ea09c368f96cb0f87accd9ba038615ccb28ee9482db925f458ef7');
INSERT INTO "composition_members" VALUES(2,1,2,'bcf50d0a06fffcdd88cc6e7447742c90f225cbe8877db45474b26039cb2bcd45');
INSERT INTO "composition_members" VALUES(3,0,3,'6600cc8799239c0739aa6646714eff27c398faf0883f334169357a54df97d295');
CREATE TABLE composition_objects (
	composition INTEGER NOT NULL, 
	role TEXT NOT NULL, 
	blob TEXT NOT NULL, 
	row_digest TEXT NOT NULL, 
	CONSTRAINT pk_composition_objects PRIMARY KEY (composition, role), 
	CONSTRAINT fk_composition_objects_blob_blobs FOREIGN KEY(blob) REFERENCES blobs (digest), 
	CONSTRAINT fk_composition_objects_composition_compositions FOREIGN KEY(composition) REFERENCES compositions (id)
);
INSERT INTO "composition_objects" VALUES(1,'selector','45a328b4975fa4ddd6c03d34fce0d5799504cb914c4219e8aec359701cc3ca85','c4c5a5f5e2aabe4e45cab5a41e9b2085d196853e240d909007a1309ed0eef94c');
INSERT INTO "composition_objects" VALUES(2,'selector','35d2d63f2c6d9dafbba2e72242c8336a2708def679ba8ea74dc4da4fe68a7e44','9b2fba556c751999f18ecd9fd6e641fd2b64508d5c8a7d71ae6476d5aea08aa1');
CREATE TABLE compositions (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	mode TEXT NOT NULL, 
	parameters TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	state TEXT NOT NULL, 
	removed_at TEXT, 
	row_digest TEXT NOT NULL, 
	CONSTRAINT pk_compositions PRIMARY KEY (id), 
	CONSTRAINT ck_compositions_state CHECK (state IN ('ready', 'removed'))
);
INSERT INTO "compositions" VALUES(1,'mix','manual','{"weights":[1.0,1.0]}','2026-02-03T04:05:23.000000+00:00','removed','2026-02-03T04:05:26.000000+00:00','1b03060136bcf802ec44e9d2f24b0b9c53793348ac04effbf15faa3b4526752e');
INSERT INTO "compositions" VALUES(2,'mix','manual','{"weights":[1.0,1.0]}','2026-02-03T04:05:27.000000+00:00','ready',NULL,'ea6f405a697ca57f62f5f67b9a4d2e6c3d40e7056c3ea683058a17d550f89632');
INSERT INTO "compositions" VALUES(3,'doomed','manual','{"weights":[1.0]}','2026-02-03T04:05:30.000000+00:00','removed','2026-02-03T04:05:32.000000+00:00','6e3d4cc6d692f76c8b533ec9267b101990b21b091619384e6a93268e2b679dc2');
CREATE TABLE datasets (
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
	CONSTRAINT pk_datasets PRIMARY KEY (id), 
	CONSTRAINT ck_datasets_split CHECK (split IN ('train', 'eval', 'calibration')), 
	CONSTRAINT fk_datasets_blob_blobs FOREIGN KEY(blob) REFERENCES blobs (digest), 
	CONSTRAINT fk_datasets_task_tasks FOREIGN KEY(task) REFERENCES tasks (position), 
	CONSTRAINT uq_datasets_task_split UNIQUE (task, split)
);
INSERT INTO "datasets" VALUES(1,1,'train',400,'["text","label"]','1111111111111111111111111111111111111111111111111111111111111111','train.jsonl',2,3,NULL,'ec39f9c16ad0eed081e02ba8848d88d8fabf1627eb278323dc238ff76f2f6496');
INSERT INTO "datasets" VALUES(2,1,'eval',80,'["text","label"]','2222222222222222222222222222222222222222222222222222222222222222','train.jsonl',0,0,'c4c6240aa51e92f0f5ab9b3f29824bee7261462104e789c959b2e222358fc0b1','7020dd95a6f8a1d33626cc29170fd2a7511f0b520025d55022a80d3463b34e8f');
INSERT INTO "datasets" VALUES(3,1,'calibration',16,'["text","label"]','3333333333333333333333333333333333333333333333333333333333333333','train.jsonl',0,0,'79cf15bb4e253884c158a294efdd5b5f0d53598d64dd80e4e48f2fb7a8f10803','2efdeac2a5bb860ce4f26addf911bcad344aae847588ac2435a10509896146de');
INSERT INTO "datasets" VALUES(4,2,'train',400,'["text","label"]','1111111111111111111111111111111111111111111111111111111111111111','train.jsonl',2,3,NULL,'1cc99803b8599fa8d84f0f5d989f41c54d47ec7cce799a6dc32a7b4d4c429ace');
INSERT INTO "datasets" VALUES(5,2,'eval',80,'["text","label"]','2222222222222222222222222222222222222222222222222222222222222222','train.jsonl',0,0,'345fcb429c0a7568bff3d0283e329bcd33fb78dd73095db1fa1ef811582f1c21','3f9125157035af990ec3b48807140a7ef8566df73863cd026296bcefff3ad06e');
INSERT INTO "datasets" VALUES(6,2,'calibration',16,'["text","label"]','3333333333333333333333333333333333333333333333333333333333333333','train.jsonl',0,0,'30a2866478b0aa4955e9cbb25c1cca4e251c626d9632a8661130b013ecd72c72','29a14e196f664221b24d2f24b9f602febb47dce3747d637982fb0a1a4f5e37d0');
INSERT INTO "datasets" VALUES(7,3,'train',400,'["text","label"]','1111111111111111111111111111111111111111111111111111111111111111','train.jsonl',2,3,NULL,'cb842ac4d3439239eb52489fc3ffa5a5ebac777fc5519b5793bfcf61276f0307');
INSERT INTO "datasets" VALUES(8,3,'eval',80,'["text","label"]','2222222222222222222222222222222222222222222222222222222222222222','train.jsonl',0,0,'7f2b186d457c84d2e148b46a4c3a7ebf289368dac4eb2a00f102e4fc901a1170','7390400fd9611bf12836387b13138f29455ff70676f0b0290bd0925abef03c8c');
INSERT INTO "datasets" VALUES(9,3,'calibration',16,'["text","label"]','3333333333333333333333333333333333333333333333333333333333333333','train.jsonl',0,0,'953ca8e770a83c5195e04e99829542e7139435b1fe7f362f27e1bfa5cae4ad29','6bcf7ed3b826c1f6a731d12ec14784f28e0b443cff509c94985048ece109567c');
INSERT INTO "datasets" VALUES(10,4,'train',400,'["text","label"]','1111111111111111111111111111111111111111111111111111111111111111','train.jsonl',2,3,NULL,'e445e410dfd816a045e7c063f35b51239baedef7f0da02897e53b149706e0c94');
INSERT INTO "datasets" VALUES(11,4,'eval',80,'["text","label"]','2222222222222222222222222222222222222222222222222222222222222222','train.jsonl',0,0,'eead03030a4c22b07e2f28f823b749f1602cfe8e191f2ccc6f9c369146280657','56a5dd96809390078c62357c4969cbb83f6a1b1f3a82328535cb02a65dac7447');
INSERT INTO "datasets" VALUES(12,4,'calibration',16,'["text","label"]','3333333333333333333333333333333333333333333333333333333333333333','train.jsonl',0,0,'67cad0f141125d221c3b883e9bb5a36b452e5778889e891a120021279b0143f8','38d5c145999407c467c948b0731809108f55a22065489846464c94c24609d1e8');
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
INSERT INTO "evaluations" VALUES('k1','as-trained',2,'spam','accuracy',0.875,80,0.78,0.93,'given','{"batch_size":64}','{"seconds":0.5}','2030-01-02T03:04:05+00:00','b1e423025a6262f4333e6197f8e4585aa253a6ffd1e79ddeb075315f1f8df33c');
INSERT INTO "evaluations" VALUES('k2','mix',2,'spam','accuracy',0.5,80,0.78,0.93,'routed','{"batch_size":64}','{"seconds":0.5}','2030-01-02T03:04:05+00:00','6a6ff27e4201ea4763d54222ad8aebf05fc10971080f693400a5b142b5a08a64');
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
	row_digest TEXT NOT NULL, 
	CONSTRAINT pk_operations PRIMARY KEY (id), 
	CONSTRAINT uq_operations_name UNIQUE (name)
);
INSERT INTO "operations" VALUES('07add812abb6c842e2f218b6550734f3','add-task','half','{"epochs":3}','2026-02-03T04:05:33.000000+00:00',0,'another-boot','elsewhere',1,'ce029b75fea6c79d776096050b241911ca8a6af202b62d91c564aaffd87abbea');
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
	row_digest TEXT NOT NULL, 
	CONSTRAINT pk_tasks PRIMARY KEY (position), 
	CONSTRAINT ck_tasks_state CHECK (state IN ('training', 'ready', 'failed', 'removed')), 
	CONSTRAINT ck_tasks_position CHECK (position > 0), 
	CONSTRAINT fk_tasks_statistics_blobs FOREIGN KEY(statistics) REFERENCES blobs (digest)
);
INSERT INTO "tasks" VALUES(1,'sentiment','SEQ_CLS','["no","yes"]','efebf84186518382e971c0a8034ce538c26315c6d1e12c9751eb8ef7337dc165',NULL,'2026-02-03T04:05:03.000000+00:00','ready',NULL,'0fe4a2229f853d26a8c16dfefab28a1511b08ef19abf6ce1e87639a041c2545f');
INSERT INTO "tasks" VALUES(2,'spam','SEQ_CLS','["no","yes"]','131b917c95beac293ba1041305e0d9dc127dc8ed53f567f17640876fba52a80a',NULL,'2026-02-03T04:05:08.000000+00:00','ready',NULL,'9b374a9254dff0dafdd04698e8313276db5e3a26f69556b4829b5390d54f51e5');
INSERT INTO "tasks" VALUES(3,'gone','SEQ_CLS','["no","yes"]','ba4f6f2bb9f3b595578658e28ca077a2e53f8f5bd6a96c6cbba7987ff246c402',NULL,'2026-02-03T04:05:13.000000+00:00','removed','2026-02-03T04:05:31.000000+00:00','99a449bba04720f65f61cb064915a0500b8ad71aaea843e176746c2e2c60ad7d');
INSERT INTO "tasks" VALUES(4,'topic','SEQ_CLS','["no","yes"]','d8bacc984e96320907ff8f938f4749044ce8e52e7e9d170cf300641f03b11f9b','{text}
Topic:','2026-02-03T04:05:18.000000+00:00','ready',NULL,'f13efc6e757b4a71eb9439b8d644208842e073eac41e083ba18a5ff5430a363f');
CREATE UNIQUE INDEX uq_compositions_live_name ON compositions (name) WHERE state != 'removed';
CREATE UNIQUE INDEX uq_tasks_live_name ON tasks (name) WHERE state != 'removed';
CREATE INDEX ix_adapters_digest ON adapters (digest);
COMMIT;
