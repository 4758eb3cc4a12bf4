\set QUIET on
set client_min_messages = warning;
create table if not exists messages (
    id bigint generated always as identity primary key,
    body text not null,
    written_at timestamptz not null default now()
);
