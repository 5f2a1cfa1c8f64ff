# PostgreSQL's image runs this once, when its volume is empty. psql itself reads the passwords: nobody sees them in its
# variables or on its command line.
psql --username=postgres --set=ON_ERROR_STOP=1 <<'SQL'
\set mlflow `cat /run/igpt/keys/mlflow`
\set prefect `cat /run/igpt/keys/prefect`
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
CREATE ROLE prefect LOGIN PASSWORD :'prefect';
CREATE DATABASE prefect OWNER prefect;
SQL
