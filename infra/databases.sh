# PostgreSQL's image runs this once, when its volume is empty.
psql --username=postgres --set=ON_ERROR_STOP=1 \
  --set=mlflow="$MLFLOW_DB_PASSWORD" --set=prefect="$PREFECT_DB_PASSWORD" <<'SQL'
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
CREATE ROLE prefect LOGIN PASSWORD :'prefect';
CREATE DATABASE prefect OWNER prefect;
SQL
