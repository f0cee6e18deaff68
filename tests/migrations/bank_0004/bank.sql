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
INSERT INTO "adapter_context" VALUES(3,0,1,'7ecaf979cd5c09d44a97c1c65dfd8b794d61cbe1e416e86fa88814f483ef0031');
INSERT INTO "adapter_context" VALUES(3,1,2,'8814a05d2eb7bf750da65536016ebb77b7de50221652ed1e86a46f69b65d7cd1');
INSERT INTO "adapter_context" VALUES(5,0,1,'51d17e38a58ffb038485a2cc1ad55f0b18f32a3fe34e188f06e7dc6c4b8e9a4a');
INSERT INTO "adapter_context" VALUES(5,1,2,'b94f14d3b93394d2355a582ae3acd10c306d662576aaa10bfad0717fd42d42ca');
INSERT INTO "adapter_context" VALUES(5,2,3,'e40cbd31ce01bba582d8ca5d19e86c84dbd20ae493dd43c8df839fe536199cd9');
INSERT INTO "adapter_context" VALUES(5,3,4,'410604b7217018ba7c1b075e2b72c6815c72d1411bb961309a834ae235dbb9ce');
INSERT INTO "adapter_context" VALUES(6,0,1,'d4c9b2db64ec184014c6f44c44ff05c026417a675d4f853aa1a160d2cfd916ed');
INSERT INTO "adapter_context" VALUES(6,1,3,'02fa00131dbfee00eec9a85176a98b9a1a3d2d0cdc27806bfcf320dbd9e57665');
INSERT INTO "adapter_context" VALUES(6,2,4,'513af7f0cc743b79a7a745dadff2159534d9f5eae838348ee1b019cae913dc0c');
INSERT INTO "adapter_context" VALUES(6,3,5,'0e0699422cba259a9a06e345ceef8989d02bbefdbbdfc0b55ffe2e2b7f5811ef');
INSERT INTO "adapter_context" VALUES(7,0,1,'0603c9d10f4b7c12ed1ad299d539626aaae9aa1292b545b17a03ddcb50dba9aa');
INSERT INTO "adapter_context" VALUES(7,1,3,'43330c29675157bcb741c0c8c12c8c90c75830b14ad26ad39827daf3dc827b5a');
INSERT INTO "adapter_context" VALUES(7,2,4,'51f020010578df0d0c5ab393088d8acc479acb3f62da93085d962f9e7551f22e');
INSERT INTO "adapter_context" VALUES(7,3,5,'dd5725c5ddc9a588124b3afc564da747d9a0e7a5419d532ec0542d912a9b860f');
INSERT INTO "adapter_context" VALUES(7,4,6,'560b283b243e2e545873462e25dd457746dab1cd6cf1878a9f2dbf31544ff15c');
INSERT INTO "adapter_context" VALUES(8,0,3,'5c27ddb952776ce821890ea734682bac12a77f4e3d1001e6ab0ab79e0d4a5776');
INSERT INTO "adapter_context" VALUES(8,1,1,'b5f284c3d6e86c69cc292ebbc2847d61efeb3f2c7c2dc5bf9a9f8090d044c63f');
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
INSERT INTO "adapter_files" VALUES(5,'adapter_config.json','9cae11a6a97c085077a6de5ec48cbcdd87e9f1620578658009db688857d47131',29,'a772379183339e9846787c18387c8d9d0d0256cfafd6a6f4e218faa21b29a639');
INSERT INTO "adapter_files" VALUES(5,'adapter_model.safetensors','7c4b55c63e58580a6602e128a1e216a34fe12af6dcdcb9bed911e632d501805e',82,'60162619052498e03f202249dc9cbb69a1175ca80254ed49de94de2bc4d92859');
INSERT INTO "adapter_files" VALUES(6,'adapter_config.json','9cae11a6a97c085077a6de5ec48cbcdd87e9f1620578658009db688857d47131',29,'6ae38d3912007af3bc6e0694de9b1b9bf60f7cf7149965815d36117ba7d2a459');
INSERT INTO "adapter_files" VALUES(6,'adapter_model.safetensors','eef9c04943b1fd1829c31320fcfc1820012f4141beccf3ec1a713f1cc9372a9c',82,'9f53f32fc7d4a624e5cdb8194129ff4a19632e6700ed2958144de5e1ff93de89');
INSERT INTO "adapter_files" VALUES(7,'adapter_config.json','9cae11a6a97c085077a6de5ec48cbcdd87e9f1620578658009db688857d47131',29,'8a5ddb72a061e4a00871b6371db6fd1b6adb8dcda668b0ec8df12df1b956af44');
INSERT INTO "adapter_files" VALUES(7,'adapter_model.safetensors','64c194dbdfed8e0de49359228b37bd06c544e216a32b20741e6ff4b5313187f1',82,'f7485b2ee3d7a4f8d094bec997fb3aa466357a64ef1a4f9eeb763cc25159ae7e');
INSERT INTO "adapter_files" VALUES(8,'adapter_config.json','9cae11a6a97c085077a6de5ec48cbcdd87e9f1620578658009db688857d47131',29,'e410d00a5f4b72ea7c10fb3193333263d418f33b05c967335cb29b8dd174a77b');
INSERT INTO "adapter_files" VALUES(8,'adapter_model.safetensors','d5b8c88ce036b145e9a96a1a940ce16138c6ab69d57b2c4ae7d97312f792249f',82,'1903cc897cfe2642e3fcbe5b4d565fdfce481bc572b3043e348eaeee11307f80');
CREATE TABLE adapter_objects (
	adapter INTEGER NOT NULL, 
	role TEXT NOT NULL, 
	blob TEXT NOT NULL, 
	row_digest TEXT NOT NULL, 
	CONSTRAINT pk_adapter_objects PRIMARY KEY (adapter, role), 
	CONSTRAINT fk_adapter_objects_adapter_adapters FOREIGN KEY(adapter) REFERENCES adapters (id), 
	CONSTRAINT fk_adapter_objects_blob_blobs FOREIGN KEY(blob) REFERENCES blobs (digest)
);
INSERT INTO "adapter_objects" VALUES(1,'inputs','0fcbe8ace840242ad6aa8f35314af2e2cb9d0e3b60247d9c9f9f3e50a0904ee7','c3d4987ff6817640937178fd972866c3c86898df3fb53855f95eceeef92bc1c1');
INSERT INTO "adapter_objects" VALUES(2,'inputs','327235943a4dbcb54654b7b52ae70092f6678aea80af48ed3240aad9baba7786','152beff0d55769d3b9e1f977959fc719b3fd139a3ad1df951d2f0ca1756b2e07');
INSERT INTO "adapter_objects" VALUES(3,'inputs','01ed0a61667be55662a36b906824f0135c30c9327eea9a3c8500e905d6834896','d1d4416d80bd32b860413297f24425270d2774fa3bd1b4f8ba0bc5c1ce755a52');
INSERT INTO "adapter_objects" VALUES(4,'inputs','f5a016889c8897f91be2a0c1650f97bd8b58015a8525d550905655af6ed70562','a0d8d6a6216745c815c1b151d10c36014350dfcd82acf4c5f133996fdc25e057');
INSERT INTO "adapter_objects" VALUES(5,'inputs','fb2143ff932b41e91783afd043f5f1b4232142f11ff1d6320292eed61ff7c6c7','b9ec3d8c77930afd0ca84b07dcc1e7a511c31bb0eb193a18afc43f5edf48a511');
INSERT INTO "adapter_objects" VALUES(6,'inputs','c0724b5fefa336ef0ff648b58f6e9300846deb06c61d4f031d906969d809f7f8','8e2b24dc4f258d108ed7616c103230678c45e902e747fe11307d54cf6288c6a2');
INSERT INTO "adapter_objects" VALUES(7,'inputs','2f751b9ffc86847715d56e5dcdcb37692082dac66491fab7d546b981dff22fbc','094e48f742da2625e5de2a8bfba7f1c14f3671ff64cc59f7e8d145b7d423f89c');
INSERT INTO "adapter_objects" VALUES(8,'inputs','eb4ddd4fc56cd018eda6adfb2c9145129d211057b8b9535ec5dafc5e7d2f8820','60c8bc889db2628dd77cd669be94914864eb974b95ed974267bdfaba454f675a');
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
INSERT INTO "adapters" VALUES(1,'04f966f9dae3abb1f53e7f84ca03926fd6a6893142183f2b57b8088e4a2a0606',8,32.0,0,'["encoder.query","encoder.value"]','olora','{"orthogonal":0.5}',7,120,3.0,'cpu',111,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','{"torch":"2.13"}','{"epochs":5.0,"labels":["no","yes"]}','{"loss":[0.7,0.1]}','2030-01-02T03:04:05+00:00','9dc73ba9ffbca046f7678af8338015baf0804f8ff4d85ede24ddf00cab97ef2d');
INSERT INTO "adapters" VALUES(2,'bcbbfb78f9542a472a45d29cbb6fd913d305b638971192e370263c3028963a17',8,32.0,0,'["encoder.query","encoder.value"]','olora','{"orthogonal":0.5}',7,120,3.0,'cpu',111,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','{"torch":"2.13"}','{"epochs":5.0,"labels":["no","yes"]}','{"loss":[0.7,0.1]}','2030-01-02T03:04:05+00:00','325c249e26a6ef52280099cbedbcb6fbc0a3d488c4409a9827a6e2d9ade64e48');
INSERT INTO "adapters" VALUES(3,'0cd5e23516fe2194f62f6b7330e50cec80029acb3c8bcb5c9408857beebf5078',8,32.0,0,'["encoder.query","encoder.value"]','olora','{"orthogonal":0.5}',7,120,3.0,'cpu',111,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','{"torch":"2.13"}','{"epochs":5.0,"labels":["no","yes"]}','{"loss":[0.7,0.1]}','2030-01-02T03:04:05+00:00','5a81155fb5c337265bdae735cddabaf7f2e3fef829ddc8a9c8fcb385702ee86a');
INSERT INTO "adapters" VALUES(4,'7b7c84cb61dff8fa8c719e62202102876267435332b1bff3515992bccd8e0a93',8,32.0,0,'["encoder.query","encoder.value"]','olora','{"orthogonal":0.5}',7,120,3.0,'cpu',111,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','{"torch":"2.13"}','{"epochs":5.0,"labels":["no","yes"]}','{"loss":[0.7,0.1]}','2030-01-02T03:04:05+00:00','3a39aef8584b730b1f2dea28f34007c424cf20555edb4c4a4e09fe88a58b5f3e');
INSERT INTO "adapters" VALUES(5,'b56f769930fa38b3dbbcadc75c427c7cb83a7e70127d6e670cebccb2a8f6a7ce',8,32.0,0,'["encoder.query","encoder.value"]','olora','{"orthogonal":0.5}',7,120,3.0,'cpu',111,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','{"torch":"2.13"}','{"epochs":5.0,"labels":["no","yes"]}','{"loss":[0.7,0.1]}','2030-01-02T03:04:05+00:00','d7c24e9eb144826d283b63a64df0158b04ecd82ebd0abfcc4f7628774600e305');
INSERT INTO "adapters" VALUES(6,'2fbe25745ac132fc8932b179b3b9d7d5ff154d130e001d8c07323443ae4c3fa1',8,32.0,0,'["encoder.query","encoder.value"]','olora','{"orthogonal":0.5}',7,120,3.0,'cpu',111,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','{"torch":"2.13"}','{"epochs":5.0,"labels":["no","yes"]}','{"loss":[0.7,0.1]}','2030-01-02T03:04:05+00:00','19f72de3855ed2038d51d9e2ec5fdf2c1eac233068b97f4e839b7f2c50168e1f');
INSERT INTO "adapters" VALUES(7,'522261a45bcb038e6f5f343d1db6b53db672f9de7589a7404a144d1b99d66c31',8,32.0,0,'["encoder.query","encoder.value"]','olora','{"orthogonal":0.5}',7,120,3.0,'cpu',111,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','{"torch":"2.13"}','{"epochs":5.0,"labels":["no","yes"]}','{"loss":[0.7,0.1]}','2030-01-02T03:04:05+00:00','ee2adfdcdf36b5591d9a72082d2d9f97ea7dc0b6c0bd2ab1cda1fe1ce839a9dc');
INSERT INTO "adapters" VALUES(8,'422fec23dcd854940b5cade7b1aeddf9781751c1fec755d528888ee6ea2273d1',8,32.0,0,'["encoder.query","encoder.value"]','olora','{"orthogonal":0.5}',7,120,3.0,'cpu',111,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','{"torch":"2.13"}','{"epochs":5.0,"labels":["no","yes"]}','{"loss":[0.7,0.1]}','2030-01-02T03:04:05+00:00','60867f02604d034ca59362ae2ca59ac1887496a0b26dffee9175b84352cd50ff');
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0004');
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
INSERT INTO "bank" VALUES(1,'b684032b23123fb2b29614d1665a2040',1,'2026-11-29T10:03:59.869338+00:00','0.1.0','526fae651da462b3294466c0555b7e1ef8ebbb9ab297ca309ef0ab8836ef6cc9');
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
INSERT INTO "base_model" VALUES(1,'tiny','local',NULL,'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','7777777777777777777777777777777777777777777777777777777777777777',NULL,'float32',NULL,'SEQ_CLS',32,1000,'2030-01-02T03:04:05+00:00','47b94932373ac2508e4fb6dfb82c9c2c975ea9680bdd238b205f80612b7e70b7');
CREATE TABLE blobs (
	digest TEXT NOT NULL, 
	bytes INTEGER NOT NULL, 
	created_at TEXT NOT NULL, 
	row_digest TEXT NOT NULL, 
	CONSTRAINT pk_blobs PRIMARY KEY (digest)
);
INSERT INTO "blobs" VALUES('0fcbe8ace840242ad6aa8f35314af2e2cb9d0e3b60247d9c9f9f3e50a0904ee7',82,'2026-11-29T10:04:01.483418+00:00','45041ac0cf240b13c5c4f80e3e0971a3adced1f95a010844d998ca16f5377cbe');
INSERT INTO "blobs" VALUES('efebf84186518382e971c0a8034ce538c26315c6d1e12c9751eb8ef7337dc165',85,'2026-11-29T10:04:01.483514+00:00','e09717762309aa36c5cebcb01e58cdfd53b2e7aa7bb29c3d9201561f357a260c');
INSERT INTO "blobs" VALUES('fdbb85667149e39f74e1c1ea9e179ba5a3acff2adbaabfa69ee6891883ab08f0',15,'2026-11-29T10:04:01.483541+00:00','1f3624e6b1d50ffabaf52e62a399ae7ce1f22cb368f3f46419d57200ee20af44');
INSERT INTO "blobs" VALUES('131b917c95beac293ba1041305e0d9dc127dc8ed53f567f17640876fba52a80a',85,'2026-11-29T10:04:01.687344+00:00','0cb4664c2768692a225dcc85bbd8304b4628208b79f642587e397bc69761aa10');
INSERT INTO "blobs" VALUES('327235943a4dbcb54654b7b52ae70092f6678aea80af48ed3240aad9baba7786',82,'2026-11-29T10:04:01.687433+00:00','d59ad36d93559ce74416ee455c29129fd58e1347518582ca37ff623fbb68fc32');
INSERT INTO "blobs" VALUES('7f08d4909185c927e3e6b08e9e3cc533e83aa10b97a32c4138ec04e0a7e6e47e',15,'2026-11-29T10:04:01.687459+00:00','7fc81282ef66ab17b1cfabb3d041721b04619c22af66588fd7a5c251bb61eb87');
INSERT INTO "blobs" VALUES('01ed0a61667be55662a36b906824f0135c30c9327eea9a3c8500e905d6834896',82,'2026-11-29T10:04:01.911729+00:00','cf41606adb5b70a4dd40248123bb41c1d20b368e23e0c6859db6fe170af5894a');
INSERT INTO "blobs" VALUES('a3fea362035eebd72d74fea0e2f103993cf5bf5e36a0ff85d73ef5a3600cf7c9',15,'2026-11-29T10:04:01.911823+00:00','e747325e833e45304d9f7555ab4bf1b9d5dc357801731e20149aaac8431acc06');
INSERT INTO "blobs" VALUES('ba4f6f2bb9f3b595578658e28ca077a2e53f8f5bd6a96c6cbba7987ff246c402',85,'2026-11-29T10:04:01.911851+00:00','e5b29b1dae8e4339c544d120e507785f1051b91f822f0c5cfecd6b61ae0c490b');
INSERT INTO "blobs" VALUES('d8bacc984e96320907ff8f938f4749044ce8e52e7e9d170cf300641f03b11f9b',85,'2026-11-29T10:04:02.091236+00:00','b7454c2074f27f05a50608c7efea5a4c25639e42d7f51c285d9dae20e42a1955');
INSERT INTO "blobs" VALUES('e74fb88e582f32e8148e8039cefef310c9878c7ce049eb8c85f4fc539b7718fe',15,'2026-11-29T10:04:02.091325+00:00','4540ba3177cb57ff90b7c1b5da8664de8fc1a172c4f02202d5e09ead39880412');
INSERT INTO "blobs" VALUES('f5a016889c8897f91be2a0c1650f97bd8b58015a8525d550905655af6ed70562',82,'2026-11-29T10:04:02.091351+00:00','1f26c838a093de200130e42a5ebb00ac3492a30581a5f12bd9990c2af2287d9b');
INSERT INTO "blobs" VALUES('432d09e8199a8f57c12f215b453578ba849230906e4215d05efc4d9eb3a56937',85,'2026-11-29T10:04:02.235170+00:00','b88a6a02312e6c82a907c7f1bf1a5cb82cef9e18072b5d086b4ead26b8806706');
INSERT INTO "blobs" VALUES('4339ab38078f10bd6f3dfe72e73e8b70dc2b74f92b13620d7d4ec60dfa1d0edc',15,'2026-11-29T10:04:02.235253+00:00','49f9a863dba10fa106ec1aec30a471074064653a8cb74c66f9453afded04e24d');
INSERT INTO "blobs" VALUES('fb2143ff932b41e91783afd043f5f1b4232142f11ff1d6320292eed61ff7c6c7',82,'2026-11-29T10:04:02.235277+00:00','5441c9a3ab9214c513c05e87079dcda97a3cbbb4ab0805de17f6663ea2b87eb2');
INSERT INTO "blobs" VALUES('2b09ddecb886d76cecf3c1a3b031cd944f8e550db85b5033e7ecd3c71ed77bfc',85,'2026-11-29T10:04:02.411378+00:00','7379061b7b8b4bae1dd08263e7520342daabfeba8891e02b9fc16907c90967c9');
INSERT INTO "blobs" VALUES('57874497f11121c73eeecb2e3e92599ef8da81615a548124f360656a30dcdaef',15,'2026-11-29T10:04:02.411592+00:00','7357287b56b0bc7ef1aef043c80af0bf6117fd405232b2c20710d5bbba050e50');
INSERT INTO "blobs" VALUES('c0724b5fefa336ef0ff648b58f6e9300846deb06c61d4f031d906969d809f7f8',82,'2026-11-29T10:04:02.411631+00:00','78d7bdb695301fef894a3dab76dd85a927636109519fbe8a7a201b1dbfaaf368');
INSERT INTO "blobs" VALUES('2f751b9ffc86847715d56e5dcdcb37692082dac66491fab7d546b981dff22fbc',82,'2026-11-29T10:04:02.575300+00:00','f2b67d11f948a77c884e8d87ed0807755e4a78b4f6e751aba1b387480c13fe77');
INSERT INTO "blobs" VALUES('5a70423408d1fc101b8b85ae65bf19cf90864e59aa7b077cb8e25391a90568cc',85,'2026-11-29T10:04:02.575387+00:00','20da5c839606351df9d227865ee98d4f88f34b8f6f8c3bdd69cb247b7acf85cc');
INSERT INTO "blobs" VALUES('745cbf3bdbebb2f71450316b78535540624ea0cb4d801e8ee2ffc424ff5fbebe',15,'2026-11-29T10:04:02.575412+00:00','71de14f4bb17009172db43def29ea22f7f7474467b1e8617c2b94ec14eede0eb');
INSERT INTO "blobs" VALUES('ac556a022c343b8cf13ee5003f2291bcd2da7e1f538975bb022645a0b989d800',85,'2026-11-29T10:04:02.739199+00:00','a462412df0b8af7f43fba8835f2a5c5915e00191ca01784330d4448bd4a28207');
INSERT INTO "blobs" VALUES('e871ac2bfba853f1b7ce86663544c3289dab739ede4769cf74af58fee4c114a6',15,'2026-11-29T10:04:02.739295+00:00','6ce45f55ee2942f1c89cc2aacaae409ea5c9acc57a7eb3321da394cd6a1caf41');
INSERT INTO "blobs" VALUES('eb4ddd4fc56cd018eda6adfb2c9145129d211057b8b9535ec5dafc5e7d2f8820',82,'2026-11-29T10:04:02.739320+00:00','645d079fe9ecdf0695b5546cce857628726de8478f822b2e0f01bd8bf64e383b');
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
	CONSTRAINT fk_datasets_blob_blobs FOREIGN KEY(blob) REFERENCES blobs (digest), 
	CONSTRAINT ck_datasets_split CHECK (split IN ('train', 'eval', 'calibration', 'replay')), 
	CONSTRAINT fk_datasets_task_tasks FOREIGN KEY(task) REFERENCES tasks (position), 
	CONSTRAINT uq_datasets_task_split UNIQUE (task, split), 
	CONSTRAINT fk_datasets_row_digests_blobs FOREIGN KEY(row_digests) REFERENCES blobs (digest)
);
INSERT INTO "datasets" VALUES(1,1,'train',400,'["text","label"]','1111111111111111111111111111111111111111111111111111111111111111','train.jsonl',2,0,NULL,'9e2532136081130ebc6999f77427a2d6481ba91b1b0b7c31f3ecaf66973d4578',NULL);
INSERT INTO "datasets" VALUES(2,1,'eval',80,'["text","label"]','2222222222222222222222222222222222222222222222222222222222222222','train.jsonl',0,0,'fdbb85667149e39f74e1c1ea9e179ba5a3acff2adbaabfa69ee6891883ab08f0','69b683387761e254d24bf5d14c4aa46ea469bb74a16c2ed4bd0413fd3954d528',NULL);
INSERT INTO "datasets" VALUES(3,2,'train',400,'["text","label"]','1111111111111111111111111111111111111111111111111111111111111111','train.jsonl',2,0,NULL,'9a4d0bc44ec45add9f5b2d7ae6d45040cfb3c31f2ffcd1982b545d79b5dd177a',NULL);
INSERT INTO "datasets" VALUES(4,2,'eval',80,'["text","label"]','2222222222222222222222222222222222222222222222222222222222222222','train.jsonl',0,0,'7f08d4909185c927e3e6b08e9e3cc533e83aa10b97a32c4138ec04e0a7e6e47e','a82bf95e567c44edce6ecbf34af080216546c466da4caa0a8afb835e24ccbe43',NULL);
INSERT INTO "datasets" VALUES(5,3,'train',400,'["text","label"]','1111111111111111111111111111111111111111111111111111111111111111','train.jsonl',2,0,NULL,'d5635812bf4abb9558fb8bd205656d554c9e6fe8644550a3f7c0202ed3b8b9d1',NULL);
INSERT INTO "datasets" VALUES(6,3,'eval',80,'["text","label"]','2222222222222222222222222222222222222222222222222222222222222222','train.jsonl',0,0,'a3fea362035eebd72d74fea0e2f103993cf5bf5e36a0ff85d73ef5a3600cf7c9','08853cb918bbcf23638b8bcd4e91b093f33ae749416b2ce988a53cfa50faaf14',NULL);
INSERT INTO "datasets" VALUES(7,4,'train',400,'["text","label"]','1111111111111111111111111111111111111111111111111111111111111111','train.jsonl',2,0,NULL,'061f0974537876b62f2809f00a2707f9f6ed3bf00ee6fa1e8578f82c1c09c16c',NULL);
INSERT INTO "datasets" VALUES(8,4,'eval',80,'["text","label"]','2222222222222222222222222222222222222222222222222222222222222222','train.jsonl',0,0,'e74fb88e582f32e8148e8039cefef310c9878c7ce049eb8c85f4fc539b7718fe','54611ab5bb47b24c5765ee9219ebdf15afe8968c22db72aa76a7236cffb11a9f',NULL);
INSERT INTO "datasets" VALUES(9,5,'train',400,'["text","label"]','1111111111111111111111111111111111111111111111111111111111111111','train.jsonl',2,0,NULL,'b4349c52b1465b59fb27955b4247fbbe78e7dbd5b32958486a9f9e13ee3601b4',NULL);
INSERT INTO "datasets" VALUES(10,5,'eval',80,'["text","label"]','2222222222222222222222222222222222222222222222222222222222222222','train.jsonl',0,0,'4339ab38078f10bd6f3dfe72e73e8b70dc2b74f92b13620d7d4ec60dfa1d0edc','754dc1403c709f8bf3ecdf505847da9c958e4e0d2a83188bb5e1cd4fc2271d51',NULL);
INSERT INTO "datasets" VALUES(11,6,'train',400,'["text","label"]','1111111111111111111111111111111111111111111111111111111111111111','train.jsonl',2,0,NULL,'f0c475d14e7fd6cf0c0aea3c8279e650412f31a970e996ea46d30cf38a4064ff',NULL);
INSERT INTO "datasets" VALUES(12,6,'eval',80,'["text","label"]','2222222222222222222222222222222222222222222222222222222222222222','train.jsonl',0,0,'57874497f11121c73eeecb2e3e92599ef8da81615a548124f360656a30dcdaef','b7d68a3462a3066db6f4ba747345bdf310c2cbb7c6d9e27256c9448fdad7645b',NULL);
INSERT INTO "datasets" VALUES(13,7,'train',400,'["text","label"]','1111111111111111111111111111111111111111111111111111111111111111','train.jsonl',2,0,NULL,'79ad8af3281ba84700ce8c2323287f0aaf755d11793465b04d005e7122e37da3',NULL);
INSERT INTO "datasets" VALUES(14,7,'eval',80,'["text","label"]','2222222222222222222222222222222222222222222222222222222222222222','train.jsonl',0,0,'745cbf3bdbebb2f71450316b78535540624ea0cb4d801e8ee2ffc424ff5fbebe','6c26f549e4804e54a1d13044ecccdbeea9306d2859e040d500a1abd1f19b3af3',NULL);
INSERT INTO "datasets" VALUES(15,8,'train',400,'["text","label"]','1111111111111111111111111111111111111111111111111111111111111111','train.jsonl',2,0,NULL,'914e38594d9bbd2e6d8c6e982347910a266eda7bdf8c119abe4d0398f45ad9a2',NULL);
INSERT INTO "datasets" VALUES(16,8,'eval',80,'["text","label"]','2222222222222222222222222222222222222222222222222222222222222222','train.jsonl',0,0,'e871ac2bfba853f1b7ce86663544c3289dab739ede4769cf74af58fee4c114a6','ed1eda0b102b8f5cefff9171c85a88ab14ff8dd0272342d9de7181e65ba6cbac',NULL);
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
INSERT INTO "events" VALUES(1,'init','','{}',NULL,'0.1.0','2026-11-29T10:03:59.869338+00:00','7e4ab326a25f9f3077d53b77ec232ac80fbbef0d31c55128ac4c26f264fe0c30');
INSERT INTO "events" VALUES(2,'add-task','t1','{"tasks_added":[1]}',NULL,'0.1.0','2026-11-29T10:04:01.484105+00:00','45e037aea8413465f08bd815dfa93e50cb153567e672de9f6be99a63103d954d');
INSERT INTO "events" VALUES(3,'add-task','t2','{"tasks_added":[2]}',NULL,'0.1.0','2026-11-29T10:04:01.688151+00:00','f23d44a320534ad689578df49687cadd80962937d6481961d19f01423eceb1ba');
INSERT INTO "events" VALUES(4,'add-task','t3','{"tasks_added":[3]}',NULL,'0.1.0','2026-11-29T10:04:01.921873+00:00','b70a8a67cf191aeb7790f1df36d10140eee3889bd688b8b0eb50ceb4699baa1d');
INSERT INTO "events" VALUES(5,'add-task','t4','{"tasks_added":[4]}',NULL,'0.1.0','2026-11-29T10:04:02.091874+00:00','4f4f23e1c5e038e6c6825fefcebc12d2a3bf4fcf2404c26296cbf36476beefdb');
INSERT INTO "events" VALUES(6,'add-task','t5','{"tasks_added":[5]}',NULL,'0.1.0','2026-11-29T10:04:02.239638+00:00','51ee12bdfcc2fb8f28bf313d162ef805483af706f69984d424b80175e3da2724');
INSERT INTO "events" VALUES(7,'remove','t2','{"tasks_removed":[2]}',NULL,'0.1.0','2026-11-29T10:04:02.288033+00:00','6d0ad5c8f41cb5e4b9fde3af64766e174cb3d09192fb3ab0f9f8a57d46a8e51c');
INSERT INTO "events" VALUES(8,'add-task','t6','{"tasks_added":[6]}',NULL,'0.1.0','2026-11-29T10:04:02.412537+00:00','a3314fe93a5cce84c411ed763475f4659064c0fb5ccf7a0457afc04ecd3ce746');
INSERT INTO "events" VALUES(9,'add-task','t7','{"tasks_added":[7]}',NULL,'0.1.0','2026-11-29T10:04:02.576242+00:00','0376a1813e7ebadf5d92b7916ade5bbbf5c31490b678620e1e449db3b994fab4');
INSERT INTO "events" VALUES(10,'add-task','t8','{"tasks_added":[8]}',NULL,'0.1.0','2026-11-29T10:04:02.740034+00:00','f8f8dc2906f9280982ee5ca13349c87cc7cc779e6e4d39d9e6e911b0b8613102');
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
INSERT INTO "tasks" VALUES(1,'t1','SEQ_CLS','["no","yes"]','efebf84186518382e971c0a8034ce538c26315c6d1e12c9751eb8ef7337dc165',NULL,'2026-11-29T10:04:01.483302+00:00','ready',NULL,'b4645f5f9acdeba55a75bae554d684a565f6eeaf3eb26b0633fa1598cf9a999c',NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(2,'t2','SEQ_CLS','["no","yes"]','131b917c95beac293ba1041305e0d9dc127dc8ed53f567f17640876fba52a80a',NULL,'2026-11-29T10:04:01.687243+00:00','removed','2026-11-29T10:04:02.287753+00:00','6366b62a56bf672ea758e3fb24f82be7c57b71597839b2fc55d691e68bac231d',NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(3,'t3','SEQ_CLS','["no","yes"]','ba4f6f2bb9f3b595578658e28ca077a2e53f8f5bd6a96c6cbba7987ff246c402',NULL,'2026-11-29T10:04:01.911619+00:00','ready',NULL,'fe9f135590e4dcb39368741c285fdb19cc10109d9860b8dfab737b5988904b5b',NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(4,'t4','SEQ_CLS','["no","yes"]','d8bacc984e96320907ff8f938f4749044ce8e52e7e9d170cf300641f03b11f9b',NULL,'2026-11-29T10:04:02.091133+00:00','ready',NULL,'683e05953ee4888e99155b6931a498804ef17f59edb12d3480de5556ec38684a',NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(5,'t5','SEQ_CLS','["no","yes"]','432d09e8199a8f57c12f215b453578ba849230906e4215d05efc4d9eb3a56937',NULL,'2026-11-29T10:04:02.235075+00:00','ready',NULL,'d3dc1cda2d270d5aa5358bd4150650aefc97477bd61525784661f2caf3f95608',NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(6,'t6','SEQ_CLS','["no","yes"]','2b09ddecb886d76cecf3c1a3b031cd944f8e550db85b5033e7ecd3c71ed77bfc',NULL,'2026-11-29T10:04:02.411281+00:00','ready',NULL,'1a5187c40e278670ab0f2035da1e86d484397f5930843297442f07deca46a7fc',NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(7,'t7','SEQ_CLS','["no","yes"]','5a70423408d1fc101b8b85ae65bf19cf90864e59aa7b077cb8e25391a90568cc',NULL,'2026-11-29T10:04:02.575200+00:00','ready',NULL,'5329baa25cae12640409bcda25d0cb8f2cec34aa2a6835329eecefa4d19e8e36',NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(8,'t8','SEQ_CLS','["no","yes"]','ac556a022c343b8cf13ee5003f2291bcd2da7e1f538975bb022645a0b989d800',NULL,'2026-11-29T10:04:02.739096+00:00','ready',NULL,'457bdf79f8e27692969741eba1e961947e47e3e52cd263aa809f328732d18cde',NULL,NULL,NULL,NULL);
CREATE UNIQUE INDEX uq_compositions_live_name ON compositions (name) WHERE state != 'removed';
CREATE UNIQUE INDEX uq_tasks_live_name ON tasks (name) WHERE state != 'removed';
CREATE INDEX ix_adapters_digest ON adapters (digest);
COMMIT;
